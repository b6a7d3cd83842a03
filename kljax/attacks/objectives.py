"""Objectives: distances between a simulated and an observed gradient.

Each takes two trees alike and gives a scalar, 0 where they are equal.
"""

import jax
import jax.numpy as jnp

from kljax.attacks.attack import Objective
from kljax.typing import Array, PyTree


def _sum(fn, *trees: PyTree) -> Array:
    return sum(jax.tree.leaves(jax.tree.map(fn, *trees)), jnp.zeros(()))


def squared_l2() -> Objective:
    """Sums ``(g - g*)^2`` over all entries of all tensors.

    Reference: DLG (Zhu et al. 2019), equation 4.
    """

    def objective(simulated: PyTree, observed: PyTree) -> Array:
        return _sum(lambda g, o: jnp.sum((g - o) ** 2), simulated, observed)

    return objective


def cosine() -> Objective:
    """Computes ``1 - <g, g*> / (|g| |g*|)`` over the whole gradient, in [0, 2].

    Blind to the gradient's length. A zero gradient on either side gives 1.

    Reference: Geiping et al., "Inverting Gradients" (NeurIPS 2020), equation 4.
    """

    def objective(simulated: PyTree, observed: PyTree) -> Array:
        simulated, observed = _over_largest(simulated), _over_largest(observed)
        dot = _sum(lambda g, o: jnp.sum(g * o), simulated, observed)
        lengths = _sum(lambda g: jnp.sum(g**2), simulated) * _sum(
            lambda o: jnp.sum(o**2), observed
        )
        # Zero only for a zero gradient, where the root has no derivative.
        return 1 - dot * jax.lax.rsqrt(jnp.where(lengths == 0, 1.0, lengths))

    return objective


def _over_largest(grads: PyTree) -> PyTree:
    """Divides by the largest entry, so that squares neither vanish nor overflow.

    A cosine does not see the length, so the divisor needs no derivative.
    """
    sizes = [jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(grads)]
    largest = jax.lax.stop_gradient(jnp.max(jnp.stack(sizes)))
    largest = jnp.where(largest == 0, 1.0, largest)
    return jax.tree.map(lambda leaf: leaf / largest, grads)


OBJECTIVES = {"squared_l2": squared_l2, "cosine": cosine}
