"""Noise on the gradient."""

import jax
import jax.numpy as jnp
from jax.scipy import stats

from kljax.core.types import Array, Public, Rng
from kljax.defences.defence import Context, Defence, is_concrete


def gaussian_noise(std: float | Array) -> Defence:
    """Adds independent noise N(0, std^2) to every entry of the gradient.

    Without clipping and accounting this is not differential privacy. An attacker who
    knows `std` gains nothing by it under a squared distance: its simulation is the
    noise-free gradient.

    Args:
      std: standard deviation, in units of the gradient's entries; 0 is the identity.

    Raises:
      ValueError: for a negative `std`.

    Reference: Zhu et al., "Deep Leakage from Gradients" (NeurIPS 2019), section 5.
    """
    if is_concrete(std) and not std >= 0:
        raise ValueError(f"std must be >= 0, got {std!r}")

    def release(rng: Rng, state, grads: Public, context: Context):
        del context
        leaves, tree = jax.tree.flatten(grads)
        rngs = jax.random.split(rng, len(leaves))
        noisy = [
            leaf + std * jax.random.normal(rng_leaf, leaf.shape, leaf.dtype)
            for rng_leaf, leaf in zip(rngs, leaves, strict=True)
        ]
        return jax.tree.unflatten(tree, noisy), state

    def log_prob(seen: Public, simulated: Public) -> Array:
        logs = jax.tree.map(
            lambda x, mean: jnp.sum(stats.norm.logpdf(x, mean, std)), seen, simulated
        )
        return jax.tree.reduce(jnp.add, logs)

    return Defence(release=release, log_prob=log_prob)
