"""Checks what was timed against its slow form: `lax.conv`, victims one by one."""

import jax
import numpy as np

from kljax.parallel import Layout, map_victims

CHECKED = 2  # victims


def slow_difference(ours, slow, given, layout):
    """Compares values and gradients of some victims: |ours - slow| / |slow|.

    Args:
      ours, slow: programs of one victim with the same results.
      given: their arguments, with a leading axis of victims.
      layout: that ours is timed in.
    """
    some = jax.tree.map(lambda x: np.asarray(x)[:CHECKED], given)
    found = map_victims(ours, layout)(*some)[0]
    expected = map_victims(slow, Layout("loop"))(*some)[0]
    apart = jax.tree.map(lambda a, b: np.asarray(a, float) - b, found, expected)
    return norm(apart) / norm(expected)


def norm(tree):
    """Computes the length of all arrays of a tree as one vector."""
    return float(
        sum(np.sum(np.square(x, dtype=float)) for x in jax.tree.leaves(tree)) ** 0.5
    )
