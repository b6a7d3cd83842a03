"""Noise on the gradient."""

from collections.abc import Callable

import jax
from jax.scipy import stats

from kljax.core.checks import is_concrete
from kljax.core.types import Array, Public, Rng
from kljax.defences.defence import Context, Defence, sum_visible


def gaussian_noise(std: float | Array) -> Defence:
    """Adds independent noise N(0, std^2) to every entry of the gradient.

    Without clipping and accounting this is not differential privacy. An attacker who
    knows `std` gains nothing by it: the likeliest gradient is the nearest one, under
    whatever `std`, and its simulation is the noise-free gradient.

    Args:
      std: standard deviation, in units of the gradient's entries; 0 is the identity,
        which has no density.

    Raises:
      ValueError: for a negative `std`.

    Reference: Zhu et al., "Deep Leakage from Gradients" (NeurIPS 2019), section 5.
    """
    return _added(std, jax.random.normal, stats.norm.logpdf, std, 2)


def laplace_noise(std: float | Array) -> Defence:
    """Adds independent Laplace noise of mean 0 to every entry of the gradient.

    The likeliest gradient is the one whose absolute distance is least. Without clipping
    and accounting this is not differential privacy either.

    Args:
      std: standard deviation, in units of the gradient's entries, which is the root of
        2 times the scale of the distribution; 0 is the identity, without a density.

    Raises:
      ValueError: for a negative `std`.

    Reference: Zhu et al., "Deep Leakage from Gradients" (NeurIPS 2019), section 5.
    """
    return _added(std, jax.random.laplace, stats.laplace.logpdf, std / 2**0.5, 1)


def _added(
    std: float | Array,
    draw: Callable[..., Array],
    logpdf: Callable[[Array, Array, float | Array], Array],
    scale: float | Array,
    degree: int,
) -> Defence:
    """Adds independent noise.

    Args:
      std: of the noise, for messages.
      draw: ``(rng, shape, dtype) -> noise`` of scale 1.
      logpdf: ``(x, mean, scale) -> log-density`` of each entry.
      scale: of the noise.
      degree: of the log-density, see `kljax.defences.Transform`.
    """
    if is_concrete(std) and not std >= 0:
        raise ValueError(f"std must be >= 0, got {std!r}")

    def release(rng: Rng, state, grads: Public, context: Context):
        del context
        leaves, tree = jax.tree.flatten(grads)
        rngs = jax.random.split(rng, len(leaves))
        noisy = [
            leaf + scale * draw(rng_leaf, leaf.shape, leaf.dtype)
            for rng_leaf, leaf in zip(rngs, leaves, strict=True)
        ]
        return jax.tree.unflatten(tree, noisy), state

    if is_concrete(std) and std == 0:
        return Defence(release=release)
    log_prob = sum_visible(lambda x, mean: logpdf(x, mean, scale))
    return Defence(release=release, log_prob=log_prob, log_prob_degree=degree)
