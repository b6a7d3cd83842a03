"""Feature hashing: many numbers become few, by signed sums that nobody chooses."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from kljax.core.randomness import fixed_rng
from kljax.core.types import Array


def feature_hashing(entries: int, size: int) -> Callable[[Array], Array]:
    """Makes the function that hashes a vector of numbers.

    Entries are dealt in a random order into buckets, each with a random sign, and every
    bucket is the sum of its entries. Products of vectors keep their expected value.
    Order and signs are the same in every study.

    Args:
      entries: d of a vector.
      size: k buckets.

    Returns:
      ``[d] -> [k]``; the identity where k is d or more.

    Raises:
      ValueError: for fewer than 1 bucket.

    Reference: Weinberger et al., "Feature Hashing for Large Scale Multitask Learning"
    (ICML 2009). Differs: buckets have equally many entries, to within one, so that
    they are sums along an axis and no scattered additions.
    """
    if size < 1:
        raise ValueError(f"feature hashing needs 1 bucket at least, got {size}")
    if size >= entries:
        return lambda values: values
    order, signs = deal(entries)
    each = -(-entries // size)
    missing = each * size - entries

    def hashed(values: Array) -> Array:
        dealt = jnp.pad(values[order] * signs, (0, missing))
        return jnp.sum(dealt.reshape(each, size), axis=0)

    return hashed


def deal(entries: int) -> tuple[Array, Array]:
    """Draws the order [d] int32 in which entries are dealt, and the sign of each [d].

    The entry that is dealt as number i is added to bucket ``i % k``.
    """
    rng_order, rng_signs = jax.random.split(fixed_rng("feature hashing"))
    order = jax.random.permutation(rng_order, entries)
    return order, jax.random.rademacher(rng_signs, (entries,), jnp.float32)
