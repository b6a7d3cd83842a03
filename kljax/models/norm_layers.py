"""Norm layers, and which of them leave scale and shift to a lock.

A key-lock gates the output of a norm layer: ``gate.scale * norm(x) + gate.shift``. At a
*lockable* path the norm therefore has no scale and shift of its own. Elsewhere it has,
and a gate there would double them. That is all a network knows of locks.
"""

import difflib
from collections.abc import Callable

from flax import nnx

from kljax.core.types import Path

EPSILON = 1e-5  # PyTorch's, of both kinds
GROUP_SIZE = 16  # the best of Wu & He, "Group Normalization" (2018), table 3

Norms = Callable[[Path, int], nnx.Module | None]


def batch_norm(
    channels: int, *, affine: bool, epsilon: float = EPSILON
) -> nnx.BatchNorm:
    """Builds a BatchNorm with PyTorch's momentum (0.1 there is 0.9 here)."""
    # Variance as the mean of squared deviations: E[x^2] - E[x]^2 cancels in float32,
    # and its second derivatives are what an attack uses.
    return nnx.BatchNorm(
        channels,
        momentum=0.9,
        epsilon=epsilon,
        use_scale=affine,
        use_bias=affine,
        use_fast_variance=False,
        rngs=_no_draws(),
    )


def group_norm(
    channels: int, *, affine: bool, epsilon: float = EPSILON
) -> nnx.GroupNorm:
    """Builds a GroupNorm; its groups have the most channels that divide, up to 16.

    16 channels are one group, 64 are four; LeNet's 12 are one.
    """
    size = max(n for n in range(1, GROUP_SIZE + 1) if channels % n == 0)
    return nnx.GroupNorm(
        channels,
        num_groups=channels // size,
        epsilon=epsilon,
        use_scale=affine,
        use_bias=affine,
        use_fast_variance=False,
        rngs=_no_draws(),
    )


def layer_norm(
    channels: int, *, affine: bool, epsilon: float = EPSILON
) -> nnx.LayerNorm:
    """Builds a LayerNorm over the channels of each place by itself, as transformers."""
    return nnx.LayerNorm(
        channels,
        epsilon=epsilon,
        use_scale=affine,
        use_bias=affine,
        use_fast_variance=False,
        rngs=_no_draws(),
    )


def _no_draws() -> nnx.Rngs:
    # Scale and shift start as constants. With a stream of its own, a norm that has
    # none changes nobody else's draws: every arm of a study has the same weights.
    return nnx.Rngs(0)


NORMS: dict[str, Callable[..., nnx.Module]] = {
    "batch": batch_norm,
    "group": group_norm,
    "layer": layer_norm,
}


def norms(
    kind: str,
    lockable: tuple[Path, ...],
    paths: tuple[Path, ...],
    *,
    everywhere: bool = True,
    epsilon: float = EPSILON,
) -> Norms:
    """Makes the function that builds a network's norm layers.

    Args:
      kind: a name in `NORMS`.
      lockable: paths of the norms that have no scale and shift.
      paths: where this network has, or can have, a norm.
      everywhere: whether there are norms outside `lockable` too, with scale and shift.
      epsilon: added to every variance.

    Returns:
      ``(path, channels) -> norm layer``, or None where there is none.

    Raises:
      ValueError: for an unknown kind, and for a lockable path that is not in `paths`;
        the real ones are listed.
    """
    if kind not in NORMS:
        raise ValueError(
            f"unknown norm {kind!r}: expected one of {', '.join(map(repr, NORMS))}"
        )
    if isinstance(lockable, str):
        raise ValueError(f"lockable must be a tuple of paths, got {lockable!r}")
    for path in lockable:
        if path not in paths:
            near = difflib.get_close_matches(path, paths, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(
                f"lockable path {path!r}{hint} is no norm layer of this network; "
                f"those are {', '.join(paths)}"
            )

    def build(path: Path, channels: int) -> nnx.Module | None:
        if path in lockable:
            return NORMS[kind](channels, affine=False, epsilon=epsilon)
        if not everywhere:
            return None
        return NORMS[kind](channels, affine=True, epsilon=epsilon)

    return build
