"""A variational bottleneck in front of a layer: what its relatives have in common.

What a layer is fed is encoded as mean and standard deviation of a normal distribution,
a sample of it is decoded, and the layer is fed that. The weights of both are public
parameters like any other. The sample's noise is drawn anew in every step, and never
leaves the client: it is `Private.secret` while the step is taken.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from kljax.core.checks import is_concrete
from kljax.core.types import Array, Gates, Params, Path, Private, PyTree, Rng
from kljax.defences.defence import Defence
from kljax.threat import BOTTLENECK_STRATEGIES, HiddenParts, SecretStrategy

LOWEST = -15.0  # softplus is exp below it, to the last digit of float32

# (beta, public, noise or None, value) -> (value in its place, added loss [])
Pass = Callable[[Array, PyTree, Array | None, Array], tuple[Array, Array]]


def bottleneck_defence(
    layer: Path,
    latent_shape: tuple[int, ...],
    *,
    draw_weights: Callable[[Rng], PyTree],
    pass_through: Pass,
    beta: float | Array,
    strategies: tuple[str, ...],
    behind: Callable[[], tuple[Path, ...]] | None = None,
) -> Defence:
    """Makes the defence that puts a bottleneck in front of a layer.

    Args:
      layer: whose input is replaced.
      latent_shape: of one example's noise.
      draw_weights: ``rng -> public weights``.
      pass_through: a function of a module, so that it equals itself.
      beta: weight of the divergence in the loss.
      strategies: names out of `kljax.threat.BOTTLENECK_STRATEGIES`.
      behind: gives the layers whose gradients the noise enters directly: `layer`, and
        those that are fed by it; None for `layer` alone.

    Raises:
      ValueError: for a beta below 0 or NaN.
    """
    if is_concrete(beta) and not 0 <= beta < math.inf:
        raise ValueError(f"beta must be finite and >= 0, got {beta!r}")

    def init(rng: Rng, params: Params) -> tuple[PyTree, Private]:
        del params
        return draw_weights(rng), Private()

    def draw_private(rng: Rng, private: Private, count: int) -> Private:
        return private._replace(secret=jax.random.normal(rng, (count, *latent_shape)))

    def gates(public: PyTree, private: Private) -> Gates:
        noise = private.secret if jax.tree.leaves(private.secret) else None
        return {f"{layer}:input": Partial(pass_through, beta, public, noise)}

    def is_noisy(name: str) -> bool:
        layers = (layer,) if behind is None else behind()
        ours = tuple(f"model/{path}/" for path in layers)
        return name.startswith(("defence/", *ours))

    return Defence(
        init=init,
        gates=gates,
        draw_private=draw_private,
        strategies=tuple(_strategy(name, is_noisy) for name in strategies),
        hidden_parts=HiddenParts("the noise of the bottleneck", None),
    )


def _strategy(name: str, is_noisy: Callable[[str], bool]) -> SecretStrategy:
    strategy = BOTTLENECK_STRATEGIES[name]
    if name != "omit":
        return strategy
    return dataclasses.replace(strategy, omits=is_noisy)


def sample(
    mean: Array, raw: Array, noise: Array | None, beta: float | Array
) -> tuple[Array, Array]:
    """Samples N(mean, softplus(raw)), and weighs its divergence from N(0, 1).

    Args:
      mean, raw: [B, ...], what was encoded.
      noise: [B, ...] of N(0, 1); None for the mean itself.
      beta: weight of the divergence.

    Returns:
      The sample, and ``beta`` times the Kullback-Leibler divergence in bits: summed
      over the entries of an example, averaged over examples.

    Raises:
      ValueError: for noise of another shape.
    """
    if noise is not None and noise.shape != mean.shape:
        raise ValueError(
            f"noise of shape {noise.shape} does not fit a bottleneck that encodes a "
            f"batch as {mean.shape}"
        )
    deviation = jax.nn.softplus(raw)
    # The logarithm of a deviation that underflows is that of its exponential.
    inner = jnp.log(jax.nn.softplus(jnp.maximum(raw, LOWEST)))
    log_deviation = jnp.where(raw > LOWEST, inner, raw)
    nats = 0.5 * (mean**2 + deviation**2 - 1) - log_deviation
    bits = jnp.sum(nats) / (mean.shape[0] * math.log(2))
    latent = mean if noise is None else mean + deviation * noise
    return latent, beta * bits


def uniform(rng: Rng, shape: tuple[int, ...], fan_in: int) -> Array:
    """Draws weights as PyTorch does by default, U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    limit = fan_in**-0.5
    return jax.random.uniform(rng, shape, jnp.float32, -limit, limit)


def check_size(name: str, size: float) -> int:
    """Checks a number of channels, which is part of the program.

    Raises:
      ValueError: for anything but a whole number above 0.
    """
    if not (1 <= size < math.inf and size == int(size)):
        raise ValueError(f"{name} must be a whole number >= 1, got {size!r}")
    return int(size)
