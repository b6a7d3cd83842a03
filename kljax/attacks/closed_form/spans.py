"""Spans: which vectors a dense layer was fed, by the gradient of its weights.

Letters: n inputs of width d, m columns of a gradient.

The weight gradient of a dense layer is ``sum_i x_i g_i^T``: all its columns are
combinations of the inputs x_i. Its rank is the number of inputs that differ, as long as
that is below d, and an input is told from other vectors by its distance to the span of
the columns. Layers that share an input, as queries, keys and values do, have their
columns put side by side.

Where noise is known to be added, the singular values end in a bulk of known shape:
those of a matrix [d, m] of independent entries of standard deviation s lie within
``s |sqrt(m) - sqrt(d)|`` and ``s (sqrt(m) + sqrt(d))`` (Marchenko and Pastur, 1967). So
how strong it is need not be told. That there is noise has to be: the weakest directions
of more inputs than d end in a bulk, too.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from kljax.core.decompositions import one_at_a_time
from kljax.core.types import Array, Rng

# Rounding gives a float32 gradient singular values of 6e-8 of the largest, and an input
# that is weak in a trained network one of 2e-7: seen on 32 sentences, at width 256.
TOLERANCE = 1e-7
BULK = 4  # singular values that a bulk of noise has at least
SLACK = 1.15  # by which edges of a finite bulk are wider than the limit's
# What two float32 passes up to the second attention differ by, relative to its input,
# is 1e-5 at most in the same network.
ROUNDING = 2e-5
# The largest error, for a way of an input, that still tells something. What has no
# direction in particular is sqrt(1 - rank / width) of its length from a span: .58 at a
# rank of two thirds of the width, .32 at nine tenths.
LARGEST_ERROR = 0.1


class Span(NamedTuple):
    """The span of a gradient's columns, in orthonormal directions.

    Attributes:
      directions: [d, d], sorted from the strongest to the weakest.
      strengths: [d] singular values.
      rank: [] number of directions that are in the span.
      noise: [] the largest singular value that counts as none.
      error: [] how far a computed input may be from the client's, relative.
      full: [] bool: every input that there can be is in the span, so it tells nothing.
    """

    directions: Array
    strengths: Array
    rank: Array
    noise: Array
    error: Array
    full: Array


def find_span(
    columns: Array,
    tolerance: Array | float = TOLERANCE,
    *,
    error: Array | float = ROUNDING,
    samples: Array | None = None,
    count: Array | int | None = None,
    noisy: bool = False,
) -> Span:
    """Finds the span of columns [d, m], m at least d.

    A rank is read off where the singular values fall below `tolerance` of the largest;
    of `noisy` columns, where they end in a bulk of noise, if that is earlier.
    Of columns that are 0 throughout, rank 0.

    Args:
      columns: [d, m], finite.
      tolerance: [] share of the largest singular value.
      error: see `Span`.
      samples: [n, d] of inputs, with all directions that an input can have. What a
        layer norm without a shift gives has one less than d: its mean is 0. None where
        an input can have any.
      count: [] of the columns that are no zeros put in place of others; None for m.
      noisy: whether independent noise was added to every entry of these.
    """
    directions, strengths = _decompose(columns)
    width, most = columns.shape
    count = jnp.asarray(most if count is None else count)
    rank = jnp.sum(strengths > tolerance * strengths[0])
    if noisy:
        rank = jnp.minimum(rank, _above_noise(strengths, width, count))
    noise = strengths[jnp.minimum(rank, width - 1)]
    span = Span(directions, strengths, rank, noise, jnp.asarray(error), rank >= width)
    if samples is None:
        return span
    # Measured, and not by the rank of the samples: of as many of them as that takes,
    # a decomposition takes longer than all else.
    _, excess = _measure(span, samples)
    return span._replace(full=span.full | jnp.all(excess <= 1))


@one_at_a_time
def _decompose(columns: Array) -> tuple[Array, Array]:
    """Gives the left singular vectors and the singular values.

    Those are the same of the small triangle that is left of columns by a QR
    decomposition, and the many right ones are never made.
    """
    triangle = jnp.linalg.qr(columns.T, mode="r")
    directions, strengths, _ = jnp.linalg.svd(triangle.T, full_matrices=False)
    return directions, strengths


def _above_noise(strengths: Array, width: int, count: Array) -> Array:
    """Counts [] singular values above a bulk of noise; where there is none, all.

    Of as many columns as rows a bulk begins at 0, and is not told from anything.
    """
    ranks = jnp.arange(width)
    # Of fewer columns than rows so many singular values are not 0.
    few = jnp.minimum(count, width)
    # r directions of signal take as many rows and columns from the noise.
    sides = [jnp.sqrt(jnp.maximum(side - ranks, 0)) for side in (count, width)]
    low, high = jnp.abs(sides[0] - sides[1]), sides[0] + sides[1]
    is_bulk = strengths * low <= SLACK * high * strengths[few - 1]
    is_bulk &= (ranks <= few - BULK) & (count != width)
    return jnp.where(jnp.any(is_bulk), jnp.argmax(is_bulk), width)


def deviations(
    span: Span, vectors: Array, moves: Array | None = None
) -> tuple[Array, Array]:
    """Measures how far vectors [..., d] are from a span.

    Args:
      span: of what was uploaded.
      vectors: that may have been fed.
      moves: [..., d], how far each moved while a client trained. What of it is outside
        of the span was lost in noise, and is an error of the vector, up to
        `LARGEST_ERROR` of its length. None where nothing moved.

    Returns:
      distance: [...] relative to the vector's length, in [0, 1]; 0 where the span is
        full or empty, and tells nothing.
      excess: [...] the distance in units of what noise, or rounding, gives a vector
        that is in the span. Noise of size e turns a direction of strength s by e / s
        at most. At most 1: in the span.
    """
    known = tells(span)
    return tuple(jnp.where(known, x, 0.0) for x in _measure(span, vectors, moves))


def _measure(
    span: Span, vectors: Array, moves: Array | None = None
) -> tuple[Array, Array]:
    """Gives `deviations`, whether or not the span tells anything."""
    lengths = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    lengths = jnp.where(lengths > 0, lengths, 1)
    shares = (vectors / lengths) @ span.directions
    inside = jnp.arange(shares.shape[-1]) < span.rank
    outside = jnp.where(_as_rows(inside, shares), 0.0, shares)
    turned = jnp.where(inside, span.noise / jnp.where(inside, span.strengths, 1), 0.0)
    distance = jnp.linalg.norm(outside, axis=-1)
    expected = jnp.linalg.norm(shares * _as_rows(turned, shares), axis=-1)
    error = span.error
    if moves is not None:
        moved = (moves / lengths) @ span.directions
        lost = jnp.linalg.norm(jnp.where(_as_rows(inside, moved), 0.0, moved), axis=-1)
        error = jnp.clip(lost, error, LARGEST_ERROR)
    return distance, distance / jnp.sqrt(expected**2 + error**2)


def draw_sketch(rng: Rng, span: Span, size: int) -> Array:
    """Draws `size` random directions outside of a span: [d, size], or zeros.

    Of a vector of length 1, the squares of its products with them have its squared
    distance as their expected sum. A vector inside of the span has products of 0.
    Where the span tells nothing they are zeros.

    Reference: Johnson and Lindenstrauss (1984).
    """
    count = len(span.strengths)
    outside = (jnp.arange(count) >= span.rank) & tells(span)
    weights = jax.random.normal(rng, (count, size)) / size**0.5
    return span.directions @ jnp.where(outside[:, None], weights, 0.0)


def tells(span: Span) -> Array:
    """Tells [] whether a span has directions, and leaves some out."""
    return ~span.full & (span.rank > 0)


def _as_rows(values: Array, like: Array) -> Array:
    return values.reshape((1,) * (like.ndim - 1) + values.shape)
