"""Gradient penalty: a descent that also keeps the gradient of its value short."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from kljax.attacks.attack import Optimiser
from kljax.attacks.objectives import root
from kljax.core.checks import is_concrete
from kljax.core.types import Array, PyTree


class PenaltyState(NamedTuple):
    """Where a pair of evaluations stands.

    Attributes:
      inner: state of the optimiser that moves.
      place: where the first of the two was made.
      value: [] there.
      grads: there.
      ahead: [] bool, whether the second comes next.
    """

    inner: PyTree
    place: PyTree
    value: Array
    grads: PyTree
    ahead: Array


def with_gradient_penalty(
    optimiser: Optimiser, *, radius: float | Array, weight: float | Array
) -> Optimiser:
    """Lets an optimiser descend on a value V and on the length of its gradient.

    It is told ``(1 - weight) grad V(x) + weight grad V(x + r u)``, u being the unit
    vector along grad V(x). To first order in r that is the gradient of ``V + weight r
    |grad V|``. The optimiser so moves at every second step: the steps in between
    evaluate ``x + r u``.

    Args:
      optimiser: that moves; it sees half of the steps.
      radius: root mean square over all unknowns of ``r u``; r is it times the root of
        how many numbers are unknown. Positive.
      weight: in [0, 1].

    Raises:
      ValueError: for numbers out of range.

    Reference: Zhao, Zhang, Hu, "Penalizing Gradient Norm for Efficiently Improving
    Generalization in Deep Learning" (ICML 2022), equation 9.
    """
    if is_concrete(radius) and not radius > 0:
        raise ValueError(f"radius must be positive, got {radius!r}")
    if is_concrete(weight) and not 0 <= weight <= 1:
        raise ValueError(f"weight must be in [0, 1], got {weight!r}")

    def init(free: PyTree) -> PenaltyState:
        zeros = jax.tree.map(jnp.zeros_like, free)
        inner = optimiser.init(free)
        return PenaltyState(inner, free, jnp.zeros(()), zeros, jnp.asarray(False))

    def step(free: PyTree, state: PenaltyState, value: Array, grads: PyTree):
        leaves = jax.tree.leaves(grads)
        count = sum(leaf.size for leaf in leaves)
        length = root(sum((jnp.sum(leaf**2) for leaf in leaves), jnp.zeros(())))
        reach = radius * count**0.5 / jnp.where(length == 0, 1.0, length)
        probe = jax.tree.map(lambda x, g: x + reach * g, free, grads)
        begun = PenaltyState(state.inner, free, value, grads, jnp.asarray(True))

        blended = jax.tree.map(
            lambda here, there: (1 - weight) * here + weight * there, state.grads, grads
        )
        moved, inner = optimiser.step(state.place, state.inner, state.value, blended)
        done = state._replace(inner=inner, ahead=jnp.asarray(False))
        return jax.tree.map(
            lambda second, first: jnp.where(state.ahead, second, first),
            (moved, done),
            (probe, begun),
        )

    return Optimiser(init, step)
