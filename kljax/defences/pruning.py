"""Pruning of the gradient."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kljax.core.checks import is_concrete
from kljax.core.types import Array, Public, Rng
from kljax.defences.defence import Context, Defence


def magnitude_pruning(fraction: float | Array) -> Defence:
    """Zeroes, tensor by tensor, the entries smallest in magnitude.

    An entry is dropped if its magnitude is strictly below the tensor's
    `fraction`-quantile (linear interpolation). The attacker sees which entries are
    zero and compares only the others. Of a step of local training nobody sees
    anything, and where noise was added to a tensor it has no zeros: there the attacker
    prunes its candidate's gradient by its own quantiles.

    Args:
      fraction: share of entries to drop, in [0, 1); 0 is the identity.

    Raises:
      ValueError: for a fraction outside [0, 1).

    Reference: GGL (Li et al., CVPR 2022), defense.py; Zhu et al. 2019, section 5.
    """
    if is_concrete(fraction) and not 0 <= fraction < 1:
        raise ValueError(f"fraction must be in [0, 1), got {fraction!r}")

    prune = functools.partial(prune_by_quantile, fraction=fraction)

    def release(rng: Rng, state, grads: Public, context: Context):
        del rng, context
        return jax.tree.map(prune, grads), state

    def simulate(
        grads: Public, sent: Public | None, earlier: Public | None, private: Any
    ) -> Public:
        del earlier, private
        if sent is None:
            return jax.tree.map(prune, grads)
        return jax.tree.map(functools.partial(zero_as_seen, prune), grads, sent)

    return Defence(release=release, simulate=simulate, deterministic=True)


def prune_by_quantile(leaf: Array, fraction: float | Array) -> Array:
    """Zeroes what is below a tensor's quantile, see `magnitude_pruning`."""
    size = jnp.abs(leaf)
    return jnp.where(
        size < jnp.quantile(size, jnp.asarray(fraction, size.dtype)), 0.0, leaf
    )


def zero_as_seen(change: Callable[[Array], Array], leaf: Array, sent: Array) -> Array:
    """Gives a tensor the zeros of the one that is seen; changes it where it has none.

    Args:
      change: what makes the zeros. Noise that follows leaves none to be seen.
      leaf: of a candidate's gradient.
      sent: the tensor that is seen.
    """
    zero = sent == 0
    return jnp.where(jnp.any(zero), jnp.where(zero, 0.0, leaf), change(leaf))
