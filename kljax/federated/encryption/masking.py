"""Secure aggregation by pairwise masks: what is sent is noise, the sum is exact.

Every two clients share a random key. In each round both draw the same mask from it;
one adds it to its upload, the other takes it off, so that all masks cancel in the sum.
Numbers are in fixed point modulo 2^32: there a masked upload is uniform whatever is
under it, and the sum is that of the fixed-point numbers, bit by bit. Masks in floating
point would give neither.

It is the heart of Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving
Machine Learning" (CCS 2017), and not its protocol. There is no key agreement: the keys
of all pairs follow from one random key that all clients have and the server has not.
There is no secret sharing, so that a client that drops out after the masks are drawn
spoils the round, which ends with an error that names it. Masks are drawn by
`jax.random`, whose generator is not made to withstand cryptanalysis. A server and one
client together read every upload, since that client has the key of all pairs; if pairs
had agreed on keys of their own it would take n - 1 clients.
"""

import functools
import itertools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from kljax.core.checks import shown, whole
from kljax.core.randomness import draw_system_rng
from kljax.core.types import Array, Rng
from kljax.federated.encryption.encryption import AddHidden, Cost, Encryption, Watch

BITS = 32  # of a number on the wire
FRACTION = 24  # bits after the point


class MissingUpload(ValueError):
    """A client that takes part in a sum and has sent nothing, so that it is noise."""


def pairwise_masks(fraction_bits: int = FRACTION) -> Encryption:
    """Makes secure aggregation by pairwise masks.

    Args:
      fraction_bits: f: numbers are rounded to multiples of 2^-f, and must lie within
        +-2^(31 - f). The mean of n clients is off by at most n 2^-(f + 1).

    Raises:
      ValueError: for f that is no whole number from 1 to 30.
    """
    if not whole(fraction_bits) or not 1 <= fraction_bits <= BITS - 2:
        raise ValueError(
            "pairwise-masks keeps a whole number of bits after the point, from 1 to "
            f"{BITS - 2}, got {shown(fraction_bits)}"
        )

    def start() -> AddHidden:
        return adding_with(draw_system_rng(), fraction_bits)

    return Encryption("pairwise-masks", start)


def pair_key(rng_pairs: Rng, client: Array | int, other: Array | int) -> Rng:
    """Gives the random key that two clients share; the order does not matter."""
    first, second = jnp.minimum(client, other), jnp.maximum(client, other)
    return jax.random.fold_in(jax.random.fold_in(rng_pairs, first), second)


@functools.partial(jax.jit, static_argnames="size")
def mask_of(
    rng_pairs: Rng, number: Array | int, client: Array | int, roster: Array, size: int
) -> Array:
    """Draws the mask of one client in a sum.

    Args:
      rng_pairs: of all pairs.
      number: of the sum; no two sums may have the same.
      client: whose mask.
      roster: [n] of all who take part, the client itself included.
      size: d.

    Returns:
      [d] uint32; over the clients of a roster the masks sum to 0 modulo 2^32.
    """

    def with_other(total: Array, other: Array):
        rng_round = jax.random.fold_in(pair_key(rng_pairs, client, other), number)
        shared = jax.random.bits(rng_round, (size,), jnp.uint32)
        signed = jnp.where(client < other, shared, jnp.uint32(0) - shared)
        return total + jnp.where(client == other, jnp.uint32(0), signed), None

    return jax.lax.scan(with_other, jnp.zeros(size, jnp.uint32), roster)[0]


def to_fixed_point(values: np.ndarray, share: float, fraction_bits: int) -> np.ndarray:
    """Writes ``share * values`` [d] in fixed point, uint32.

    Raises:
      ValueError: for numbers that are not finite, and where the mean of numbers so
        large would not fit 32 bits.
    """
    values = np.asarray(values, np.float64)
    if not np.all(np.isfinite(values)):
        raise ValueError("only finite numbers can be masked, and some are not")
    # The mean of n <= 2^16 clients is no larger than the largest, but for rounding.
    bound = 2.0 ** (BITS - 1 - fraction_bits) - 2.0 ** (16 - fraction_bits)
    largest = np.max(np.abs(values), initial=0.0)
    if not largest < bound:
        raise ValueError(
            f"a number of size {largest:.3g} does not fit {BITS} bits with "
            f"{fraction_bits} after the point, which hold up to {bound:.3g}: take "
            "fewer, as pairwise-masks=BITS"
        )
    fixed = np.rint(share * values * 2.0**fraction_bits).astype(np.int64)
    return fixed.astype(np.uint32)  # modulo 2^32


def from_fixed_point(total: np.ndarray, fraction_bits: int) -> np.ndarray:
    """Reads numbers [d] back, float64."""
    return np.asarray(total, np.uint32).view(np.int32) / 2.0**fraction_bits


def add_masked(uploads: Mapping[int, np.ndarray], roster: np.ndarray) -> np.ndarray:
    """Adds masked uploads up [d], modulo 2^32; the server's part.

    Args:
      uploads: [d] uint32, by client.
      roster: [n] of the clients that the masks were drawn for.

    Raises:
      MissingUpload: naming those of the roster that have sent nothing.
      ValueError: for an upload of who is not in the roster.
    """
    expected = {int(client) for client in roster}
    missing = sorted(expected - uploads.keys())
    if missing:
        raise MissingUpload(
            f"clients {missing} of the sum have sent nothing: the masks that they "
            "share with the others do not cancel, and nobody can take them off (there "
            "is no secret sharing); begin again with a roster without them"
        )
    strangers = sorted(uploads.keys() - expected)
    if strangers:
        raise ValueError(
            f"clients {strangers} are not in the roster of the sum: nobody has drawn "
            "masks with them"
        )
    # NumPy's unsigned integers wrap around: they are numbers modulo 2^32.
    return functools.reduce(np.add, uploads.values())


def adding_with(rng_pairs: Rng, fraction_bits: int = FRACTION) -> AddHidden:
    """Makes the sum of a round from what the keys of all pairs follow from."""
    # Not the number of the round: whoever runs one again, on other data, would send
    # two uploads under one mask, whose difference a server could read.
    sums = itertools.count()

    def masked(
        number: int, client: int, roster: np.ndarray, share: float, own: np.ndarray
    ) -> np.ndarray:
        fixed = to_fixed_point(own, share, fraction_bits)
        # Of few sizes: what is hidden by a mask differs from round to round.
        mask = mask_of(rng_pairs, number, client, roster, _rounded_up(fixed.size))
        return fixed + np.asarray(mask)[: fixed.size]

    def add(
        number: int, ids: np.ndarray, shares: np.ndarray, values: np.ndarray
    ) -> tuple[np.ndarray, Cost]:
        watch, roster, uploads = Watch(), np.asarray(ids, np.int32), {}
        this_sum = next(sums)
        for client, share, own in zip(ids.tolist(), shares, values, strict=True):
            arguments = this_sum, client, roster, float(share), own
            try:
                uploads[client] = watch.timed("encrypt", masked, *arguments)
            except ValueError as error:
                raise ValueError(f"round {number}, client {client}: {error}") from error
        total = watch.timed("add", add_masked, uploads, roster)
        mean = watch.timed("decrypt", from_fixed_point, total, fraction_bits)
        seconds = watch.seconds
        return mean, Cost(
            total.nbytes, seconds["encrypt"] / len(ids), seconds["add"], 0.0
        )

    return add


def _rounded_up(size: int) -> int:
    """Gives one of eight sizes per power of two, an eighth larger at most."""
    step = 1 << max(0, size.bit_length() - 4)
    return -(-size // step) * step
