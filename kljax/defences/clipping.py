"""Clipping of the gradient's norm, or of each example's."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from kljax.core.checks import is_concrete
from kljax.core.types import Array, Public, Rng
from kljax.defences.defence import Context, Defence


def norm_clipping(bound: float | Array) -> Defence:
    """Scales the whole gradient down to Euclidean norm `bound`, if it is longer.

    Without noise this only rescales: its direction, and so every cosine attack, is
    untouched. The attacker knows the bound (it is part of the protocol) and clips
    its own candidate.

    Args:
      bound: largest norm sent; ``inf`` is the identity.

    Raises:
      ValueError: for a bound that is not positive.

    Reference: GGL (Li et al., CVPR 2022), defense.py; there the bound is 4.
    """
    clip = _shortener(bound)

    def release(rng: Rng, state, grads: Public, context: Context):
        del rng, context
        return clip(grads), state

    def simulate(
        grads: Public, sent: Public | None, earlier: Public | None, private: Any
    ) -> Public:
        del sent, earlier, private
        return clip(grads)

    return Defence(release=release, simulate=simulate, deterministic=True)


def example_clipping(bound: float | Array) -> Defence:
    """Scales the gradient of each example down to Euclidean norm `bound`, if longer.

    The mean over the batch is taken afterwards, so that no example moves it by more
    than ``bound / B``: what DP-SGD does before its noise. An attacker who knows the
    bound shortens the gradient of each of its candidate's examples, too.

    Args:
      bound: largest norm of one example's gradient; ``inf`` is the identity.

    Raises:
      ValueError: for a bound that is not positive.

    Reference: Abadi et al., "Deep Learning with Differential Privacy" (CCS 2016),
    algorithm 1.
    """
    clip = _shortener(bound)

    def per_example(rng: Rng, grads: Public) -> Public:
        del rng
        return clip(grads)

    return Defence(per_example=per_example, simulate_example=clip, deterministic=True)


def _shortener(bound: float | Array) -> Callable[[Public], Public]:
    if is_concrete(bound) and not bound > 0:
        raise ValueError(f"bound must be > 0, got {bound!r}")

    def clip(grads: Public) -> Public:
        # The 1e-12 keeps the derivative finite at a zero gradient.
        norm = jnp.sqrt(optax.tree.norm(grads, squared=True) + 1e-12)
        factor = jnp.minimum(1.0, bound / norm)
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), grads)

    return clip
