"""The error of a batch whose order nobody knows."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kljax.core.types import Array

TRIED = 4  # examples of which all orders are tried; there are 24


def unordered_error(found: Array, truths: Array) -> Array:
    """Computes the mean squared error in the order that makes it least.

    Args:
      found: [B, ...], what is found of each example, in any order.
      truths: [B, ...].

    Returns:
      [], which has a derivative with respect to `found`: that in the best order, which
      is exact for any B. For more than `TRIED` examples it is found by the Hungarian
      method (`optax.assignment`).

    Reference: Wu et al., "Learning To Invert" (UAI 2023), section 4.1, and its code,
    main_learn_dlg.py.
    """
    count = len(truths)
    apart = found.reshape(count, 1, -1) - truths.reshape(1, count, -1)
    costs = jnp.mean(apart**2, axis=-1)
    if count <= TRIED:
        orders = np.array([*itertools.permutations(range(count))])
        return jnp.min(jnp.mean(costs[np.arange(count), orders], axis=1))
    rows, columns = optax.assignment.hungarian_algorithm(jax.lax.stop_gradient(costs))
    return jnp.mean(costs[rows, columns])
