"""Uploads as vectors side by side: their distances, and their coordinates in order.

An upload is one vector here: the change of the weights together with the norm
statistics. Letters: n clients, D coordinates.
"""

import jax
import jax.numpy as jnp

from kljax.core.types import Array, PyTree

# Of two squared lengths: below this share of their sum, a squared distance that was
# made of products has lost more than five of float32's 24 bits.
SURE = 0.05


def as_rows(uploads: PyTree) -> Array:
    """Writes n uploads, trees with a leading axis [n], as one matrix [n, D]."""
    leaves = [jnp.asarray(x) for x in jax.tree.leaves(uploads)]
    return jnp.concatenate([x.reshape(len(x), -1) for x in leaves], axis=1)


def as_upload(row: Array, uploads: PyTree) -> PyTree:
    """Writes a vector [D] as one upload, the inverse of `as_rows`.

    Args:
      row: [D].
      uploads: trees with a leading axis [n], for shapes and dtypes.
    """
    leaves, tree = jax.tree.flatten(uploads)
    made, first = [], 0
    for leaf in leaves:
        size = leaf[0].size
        piece = row[first : first + size].reshape(leaf.shape[1:])
        made.append(piece.astype(leaf.dtype))
        first += size
    return jax.tree.unflatten(tree, made)


def as_units(rows: Array) -> tuple[Array, Array]:
    """Divides n vectors [n, D] by their lengths, which it gives beside them [n].

    One of length 0 is left as it is. Squares of any float are beyond no float here.
    """
    peaks = jnp.max(jnp.abs(rows), axis=1, keepdims=True)
    scaled = rows / jnp.where(peaks > 0, peaks, 1)
    lengths = jnp.sqrt(jnp.sum(scaled**2, axis=1, keepdims=True))
    return scaled / jnp.where(lengths > 0, lengths, 1), (peaks * lengths)[:, 0]


def squared_distances(rows: Array) -> Array:
    """Computes the squared distances of n vectors [n, D] from each other [n, n].

    They are made of one matrix product of all vectors, seen from a point in their
    midst. Products lose what is between near vectors far from that point (and what is
    between vectors whose squares are beyond float32), so the rows of those are made
    again from differences: some n D operations for each of them, one after another.
    """
    # Each vector counts for the midst by no more than the median length.
    lengths = jnp.sqrt(jnp.sum(rows**2, axis=1))
    shares = jnp.median(lengths) / jnp.maximum(lengths, jnp.median(lengths))
    # Where more than half have a length that is 0, or beyond float32.
    shares = jnp.where(jnp.isfinite(shares), shares, 0.0)
    seen = rows - (shares @ rows / len(rows))[None]
    squares = jnp.sum(seen**2, axis=1)
    both = squares[:, None] + squares[None]
    apart = both - 2 * jnp.matmul(seen, seen.T, precision="highest")
    unsure = ~(apart >= SURE * both) & ~jnp.eye(len(rows), dtype=bool)

    def settled(inputs: tuple[Array, Array, Array]) -> Array:
        one, found, doubted = inputs

        def from_differences() -> Array:
            exact = jnp.sum((rows - one[None]) ** 2, axis=1)
            return jnp.where(doubted, exact, found)

        return jax.lax.cond(jnp.any(doubted), from_differences, lambda: found)

    apart = jax.lax.map(settled, (rows, apart, unsure))
    return jnp.where(jnp.eye(len(rows), dtype=bool), 0.0, apart)


def sort_last(x: Array) -> Array:
    """Sorts floats without NaN along the last axis, in ascending order.

    As integers of the same order, which XLA sorts several times as fast on a CPU.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return jnp.sort(x, axis=-1)
    bits = {2: jnp.int16, 4: jnp.int32, 8: jnp.int64}[x.dtype.itemsize]
    sign = jnp.iinfo(bits).bits - 1

    def flipped(i: Array) -> Array:  # its own inverse
        return i ^ ((i >> sign) & jnp.iinfo(bits).max)

    ordered = jnp.sort(flipped(jax.lax.bitcast_convert_type(x, bits)), axis=-1)
    return jax.lax.bitcast_convert_type(flipped(ordered), x.dtype)


def sort_clients(x: Array) -> Array:
    """Sorts each coordinate over clients: [n, ...] -> [..., n]."""
    # Values of a coordinate beside each other: a sort of columns goes from row to row.
    return sort_last(jnp.moveaxis(x, 0, -1))
