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


def deal_out(compute: Callable[[Array], Array], count: int) -> Array:
    """Computes a value for each of 0, ..., count - 1, on all devices of a victim.

    Args:
      compute: ``indices [n] -> values [n, ...]``, each of its index alone.
      count: 1 or more. Where devices do not divide it, the last of them fills its share
        up with the first indices, for nothing.

    Returns:
      The values [count, ...], on each device. Without the axis it is one call.
    """
    try:
        devices = jax.lax.axis_size(SPARE)
    except NameError:  # there is no such axis
        return compute(jnp.arange(count))
    share = -(-count // devices)
    first = share * jax.lax.axis_index(SPARE)
    values = compute((first + jnp.arange(share)) % count)
    return jax.lax.all_gather(values, SPARE, tiled=True)[:count]
