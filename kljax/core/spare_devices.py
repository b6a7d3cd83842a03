"""Devices that have no victim of their own, and help with another's.

Where there are fewer victims than devices, `kljax.parallel.map_victims` gives each
victim several, on the axis `SPARE`. They all compute the same, but for what is dealt
out to them here.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from kljax.core.types import Array

SPARE = "spare"  # axis of the devices of one victim
# Values between two meetings of a victim's devices. On a CPU XLA ends the process where
# one of them is 40 seconds behind; values may take unequal times, and seconds each.
ROUND = 8


def deal_out(compute: Callable[[Array], Array], count: int) -> Array:
    """Computes a value for each of 0, ..., count - 1, on all devices of a victim.

    Args:
      compute: ``indices [n] -> values [n, ...]``, each of its index alone; n is at most
        `ROUND` where there are several devices. The last indices may be followed by the
        first, for nothing, so that all devices have as many.
      count: 1 or more.

    Returns:
      The values [count, ...], on each device. Without the axis it is one call.
    """
    try:
        devices = jax.lax.axis_size(SPARE)
    except NameError:  # there is no such axis
        return compute(jnp.arange(count))
    share = -(-count // devices)
    rounds = -(-share // ROUND)
    size = -(-share // rounds)

    def compute_round(turn: Array) -> Array:
        first = (turn * devices + jax.lax.axis_index(SPARE)) * size
        values = compute((first + jnp.arange(size)) % count)
        return jax.lax.all_gather(values, SPARE, tiled=True)

    values = jax.lax.map(compute_round, jnp.arange(rounds))
    return values.reshape(-1, *values.shape[2:])[:count]
