"""Random numbers that are the same on every machine and under every NumPy.

NumPy promises the raw stream of a bit generator across its versions, and how a
`SeedSequence` seeds one, but not what `Generator` makes of the stream. So everything
here is made of raw 64-bit integers.

A draw is named by what it is for and where it belongs, besides the seed:
``shuffled(10, seed, "batches", 3, 7)`` is the draw for round 3 and client 7. Draws of
different names are independent, so none depends on which others were made before it.
"""

import zlib

import numpy as np

from kljax.data.checks import check_whole


def raw(count: int, seed: int, purpose: str, *where: int) -> np.ndarray:
    """Draws raw integers.

    Args:
      count: how many.
      seed: 0 to 2**128 - 1.
      purpose: what the draw is for, in one word.
      where: what else it belongs to (round, client, ...), each 0 to 2**32 - 1.

    Returns:
      [count] uint64.

    Raises:
      TypeError, ValueError: a number that is no integer, or outside its range.
    """
    seed = check_below(seed, 2**128, "seed")
    # A spawn key keeps seed and name apart, where a list of integers would run them
    # together: larger ones are taken as several words, and zeros at the end as none.
    name = [zlib.crc32(purpose.encode())]
    name += [check_below(part, 2**32, f"a number of {purpose}") for part in where]
    sequence = np.random.SeedSequence(seed, spawn_key=tuple(name))
    return np.random.PCG64(sequence).random_raw(count)


def shuffled(count: int, seed: int, purpose: str, *where: int) -> np.ndarray:
    """Draws a permutation of 0 to count - 1, [count] int64; arguments as in `raw`."""
    order = np.argsort(raw(count, seed, purpose, *where), kind="stable")
    return order.astype(np.int64, copy=False)


def uniforms(count: int, seed: int, purpose: str, *where: int) -> np.ndarray:
    """Draws [count] float64, uniform and strictly in (0, 1); arguments as in `raw`."""
    # 52 bits and a half: the largest still rounds to less than 1.
    return ((raw(count, seed, purpose, *where) >> 12) + 0.5) * 2.0**-52


def check_below(value, limit: int, name: str) -> int:
    """Returns an integer of 0 to limit - 1, or refuses what is none."""
    value = check_whole(value, name)
    if value < 0:
        raise ValueError(f"{name} is {value}; give 0 or more")
    if value >= limit:
        raise ValueError(f"{name} is {value}; give less than {limit}")
    return value
