"""Sparse directions: combinations of a matrix's rows that vanish at many columns.

A gradient of B examples behind a ReLU is ``X^T D`` with a D [B, m] of many zeros. Of D
the space of its rows is known (`low_rank`), and each row of D is the one combination of
them, up to its length, that vanishes wherever that example's ReLU is shut. Letters: B
examples, m units, N candidates, P kept directions.

Directions are found as candidates, by one of two ways:

* *sampled*: B - 1 columns are drawn, and the direction that vanishes there is tried. If
  some example is shut at all of them it is that example's row. An example that is shut
  at every second unit is met once in 2^(B - 1) draws.
* *learned*: from random starts the directions descend on the sum of the absolute angles
  to the columns, which is least where many are exactly 0.

Both are then made exact: the columns at which a candidate all but vanishes determine it
by least squares, far better than the B - 1 it was drawn by. It is accepted only if it
vanishes at more columns than chance would have it, and if no other direction vanishes
at the same ones.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kljax.core.types import Array, Rng

NEAR = 2e-3  # cosine of an angle that is taken for a right one, in a first look
NARROWING = (1e-4, 1e-5)  # the same, while a direction is made exact
NOISES = 6.0  # deviations within which a number may be 0
SURPLUS = 4.0  # deviations by which zeros must exceed their expected number
MORE = 2  # zeros beyond that: one more comes by chance in a million candidates
DENSITY = (2 / np.pi) ** 0.5  # of |N(0, 1)| at 0
EVENINGS = 10
BEARING = 0.999  # leverage of a column that bears a direction alone
ALIKE = 0.999  # cosine of two rows that are taken for one
APART = (1 - ALIKE) ** 0.5  # sine of an angle to a span, outside of which a row is new


class Rows(NamedTuple):
    """The space of D's rows, and coordinates in which columns point everywhere alike.

    Directions are coefficients of `right`; *evened* ones are coefficients of `angles`,
    of which the same row follows but for the lengths of its columns.

    Attributes:
      right: [B, m], orthonormal basis; beyond the rank nothing but zeros.
      sizes: [B], the singular values, in deviations of the noise.
      angles: [B, m] float32, evened columns of unit length; of dead ones 0.
      lengths: [m], that they had; of dead columns 0.
      back: [B, B], ``direction = back @ evened``.
      rank: [] int32.
    """

    right: Array
    sizes: Array
    angles: Array
    lengths: Array
    back: Array
    rank: Array

    @property
    def live(self) -> Array:
        """Tells [m] which columns are not zero throughout."""
        return self.lengths > 0


class Exact(NamedTuple):
    """A direction that has been made exact.

    Attributes:
      direction: [B], unit length.
      row: [m], what it combines to; unit length.
      zeros: [] int32, live columns at which it vanishes; -1 if it is not accepted.
    """

    direction: Array
    row: Array
    zeros: Array


class Proposal(NamedTuple):
    """A way to candidates.

    Attributes:
      draw: ``(rng, Rows) -> evened directions [B, N]``, float32, of unit length.
      count: N.
      looked_at: how many of them are made exact at most.
    """

    draw: Callable[[Rng, Rows], Array]
    count: int
    looked_at: int


def rows_of(right: Array, sizes: Array, noise: Array, rank: Array) -> Rows:
    """Prepares the space of D's rows; arguments as in `low_rank.Factors`.

    Columns are evened by Tyler's scatter: the linear map after which those of unit
    length have a covariance of 1. Without it most of them all but lie in the few
    directions that the examples have in common.
    """
    active = (_indices(len(sizes)) < rank)[:, None]
    # Where nothing is beyond the rank, rounding of float64 is all the noise there is.
    unit = jnp.maximum(noise, jnp.finfo(sizes.dtype).eps * sizes[0])
    right = jnp.where(active, right, 0.0)
    live = jnp.linalg.norm(right * sizes[:, None], axis=0) > NOISES * unit
    beyond = jnp.diag((~active[:, 0]).astype(right.dtype))
    share = rank / jnp.maximum(_count(live), 1)

    def even(_, whole: Array) -> Array:
        columns = _unit(jnp.where(live[None], whole @ right, 0.0))
        values, vectors = jnp.linalg.eigh(share * columns @ columns.T + beyond)
        return (vectors / jnp.sqrt(jnp.maximum(values, 1e-9))[None]) @ vectors.T @ whole

    whole = jax.lax.fori_loop(0, EVENINGS, even, jnp.eye(len(sizes), dtype=right.dtype))
    columns = jnp.where(live[None], whole @ right, 0.0)
    return Rows(
        right,
        sizes / unit,
        _unit(columns).astype(jnp.float32),
        jnp.linalg.norm(columns, axis=0),
        whole.T,
        rank,
    )


def null_vectors(columns: Array) -> Array:
    """Finds the unit vector [B, N] at right angles to B - 1 columns [B, B - 1, N].

    By Householder reflections, for all N at once: N is the last axis, along which a
    processor computes several at a time. Of columns that depend on each other one of
    the vectors that will do.
    """
    size, places = len(columns), _indices(len(columns))
    if size == 1:
        return jnp.ones_like(columns, shape=(1, columns.shape[-1]))

    def reflect(columns: Array, index: Array) -> tuple[Array, Array]:
        column = jnp.where((places >= index)[:, None], columns[:, index], 0.0)
        length = jnp.linalg.norm(column, axis=0)
        end = jnp.where(column[index] < 0, -length, length)
        mirror = column.at[index].add(end)
        mirror = _unit(mirror)
        # As a product: a sum over the first axis takes a CPU ten times as long.
        along = jnp.einsum("in,ikn->kn", mirror, columns, precision="highest")
        return columns - 2 * mirror[:, None] * along[None], mirror

    _, mirrors = jax.lax.scan(reflect, columns, _indices(size - 1))
    last = jnp.zeros_like(columns, shape=(size, columns.shape[-1])).at[-1].set(1.0)

    def back(vector: Array, mirror: Array) -> tuple[Array, None]:
        return vector - 2 * mirror * jnp.sum(mirror * vector, axis=0)[None], None

    vector, _ = jax.lax.scan(back, last, mirrors, reverse=True)
    return vector


def sampled(count: int, looked_at: int = 24) -> Proposal:
    """Proposes directions that vanish at B - 1 live columns drawn at random.

    Columns may be drawn twice; such a candidate is wasted, and seldom.
    """

    def draw(rng: Rng, rows: Rows) -> Array:
        size = len(rows.angles)
        order = _descending(rows.live)
        drawn = jax.random.uniform(rng, (size - 1, count), jnp.float32)
        places = (drawn * _count(rows.live)).astype(jnp.int32)
        columns = rows.angles[:, order[places]]
        # Beyond the rank a unit vector in place of a column: nothing goes along it.
        within = (_indices(size - 1) < rows.rank - 1)[None, :, None]
        units = jnp.eye(size, dtype=jnp.float32)[:, 1:, None]
        return null_vectors(jnp.where(within, columns, units))

    return Proposal(draw, count, min(looked_at, count))


def learned(count: int, moves: int = 300) -> Proposal:
    """Proposes directions that have descended on the sum of absolute cosines.

    That sum over columns of unit length is the objective of dual principal component
    pursuit; its corner is rounded off ever less. This is kljax's own: of SPEAR++ no
    more is used than that it learns a dictionary instead of sampling.

    Reference: Tsakiris and Vidal, "Dual Principal Component Pursuit" (JMLR 2018);
    Bakarsky et al., "SPEAR++" (2510.24200), its abstract.
    """

    def draw(rng: Rng, rows: Rows) -> Array:
        columns = rows.angles
        start = jax.random.normal(rng, (len(columns), count), jnp.float32)
        inside = (_indices(len(columns)) < rows.rank)[:, None]
        start = _unit(jnp.where(inside, start, 0.0))

        def move(index: Array, directions: Array) -> Array:
            share = jnp.float32(index) / moves
            width, step = 0.3 * 1e-4**share, 0.5 * 2e-4**share
            values = columns.T @ directions
            slope = columns @ (values / jnp.sqrt(values**2 + width**2))
            slope -= directions * jnp.sum(slope * directions, axis=0)[None]
            return _unit(directions - step * _unit(slope))

        return jax.lax.fori_loop(0, moves, move, start)

    return Proposal(draw, count, count)


def _indices(count: int) -> Array:
    """Counts from 0 in int32, as outside of ``float64(True)``."""
    return jax.lax.iota(jnp.int32, count)


def _count(true: Array) -> Array:
    """Counts what is true along the first axis, in int32."""
    return jnp.sum(true, axis=0, dtype=jnp.int32)


def _descending(values: Array) -> Array:
    """Gives int32 places of values [n], the largest first."""
    falling = -values.astype(jnp.float32)
    return jax.lax.sort((falling, _indices(len(values))), num_keys=1)[1]


def _unit(vectors: Array) -> Array:
    """Brings columns to unit length; zeros stay."""
    lengths = jnp.linalg.norm(vectors, axis=0)
    return vectors / jnp.where(lengths > 0, lengths, 1.0)[None]


def search(
    rng: Rng, rows: Rows, proposal: Proposal, *, chunks: int
) -> tuple[Exact, Array]:
    """Looks for the rows of D until there are as many as the rank, or for `chunks`.

    To be called within ``float64(True)``, for one victim.

    Returns:
      B directions, of which those with ``zeros >= 0`` were found and are independent,
      and [] int32 how many chunks of candidates were drawn.
    """
    size, columns = rows.right.shape
    places = 2 * size  # some that are accepted may depend on others
    kept = Exact(
        jnp.zeros((places, size), rows.right.dtype),
        jnp.zeros((places, columns), rows.right.dtype),
        jnp.full(places, -1, jnp.int32),
    )
    chance = _count(rows.live) * DENSITY * NEAR * jnp.sqrt(rows.rank)
    expected = rows.rank - 1 + chance + jnp.sqrt(chance)

    def is_missing(kept: Exact) -> Array:
        return _count(independent(kept).zeros >= 0) < rows.rank

    def goes_on(state: tuple[Array, Exact]) -> Array:
        done, kept = state
        return (done < chunks) & is_missing(kept)

    def look(state: tuple[Array, Exact]) -> tuple[Array, Exact]:
        done, kept = state
        evened = proposal.draw(jax.random.fold_in(rng, done), rows)
        directions = _unit(rows.back.astype(jnp.float32) @ evened)
        counts = near(rows, evened, NEAR)

        def is_promising(state: tuple[Array, Array, Exact]) -> Array:
            number, counts, kept = state
            left = jnp.max(jnp.where(is_kept(kept, directions), 0, counts)) > expected
            return (number < proposal.looked_at) & left & is_missing(kept)

        def take(state: tuple[Array, Array, Exact]) -> tuple[Array, Array, Exact]:
            number, counts, kept = state
            counts = jnp.where(is_kept(kept, directions), 0, counts)
            new = jnp.where(depends_on(kept, directions), 0, counts)
            # Where two rows both vanish all their combinations do, often at more
            # columns than a third row. Every other turn still goes to those: what was
            # kept may itself be such a combination, and a row is found in its stead.
            first = (number % 2 == 0) & (jnp.max(new) > expected)
            best = _descending(jnp.where(first, new, counts))[0]
            chosen = directions[:, best].astype(rows.right.dtype)
            return number + 1, counts.at[best].set(0), keep(kept, polish(rows, chosen))

        begun = jnp.asarray(0, jnp.int32), counts, kept
        return done + 1, jax.lax.while_loop(is_promising, take, begun)[-1]

    done, kept = jax.lax.while_loop(goes_on, look, (jnp.asarray(0, jnp.int32), kept))
    return independent(kept), done


def noise_of(rows: Rows, direction: Array) -> Array:
    """Computes the deviation of each number of what a direction [..., B] combines to.

    In the unit of `Rows.right`.
    """
    inside = _indices(len(rows.sizes)) < rows.rank
    precisions = jnp.where(inside, 1 / rows.sizes, 0.0)
    return jnp.sqrt(direction**2 @ precisions**2)


def near(rows: Rows, evened: Array, width: float) -> Array:
    """Counts live columns at which evened directions [B, N] all but vanish: [N]."""
    cosines = jnp.abs(rows.angles.T @ evened)
    noise = noise_of(rows, (rows.back.astype(jnp.float32) @ evened).T)
    lengths = jnp.where(rows.live, rows.lengths, jnp.inf).astype(jnp.float32)
    unsure = NOISES * noise.astype(jnp.float32)[None] / lengths[:, None]
    return _count((cosines < jnp.maximum(width, unsure)) & rows.live[:, None])


def polish(rows: Rows, direction: Array) -> Exact:
    """Makes a direction [B] exact by all columns at which it all but vanishes.

    It is accepted if it vanishes, within the noise, at more columns than a direction
    that is determined by some of them would by chance, if it is the only one that
    vanishes there, and if it would be so without any one of these columns: a
    combination of two rows vanishes where both do, and at a column more that it is
    chosen for, without which it would be any combination of the two.
    """
    size = len(rows.sizes)
    inside = _indices(size) < rows.rank
    scaled = rows.right * rows.sizes[:, None]  # of unit noise in all directions
    lengths = jnp.where(rows.live, rows.lengths, jnp.inf)
    angles = rows.back.T @ rows.right / lengths[None]

    def values(direction: Array) -> Array:
        """Gives a row in deviations of its own noise, [m]."""
        return direction @ rows.right / noise_of(rows, direction)

    def least(columns: Array) -> tuple[Array, Array]:
        """Finds the direction along which columns [B, m] are least, and the second."""
        beyond = jnp.diag(jnp.where(inside, 0.0, jnp.max(jnp.abs(columns))))
        triangle = jnp.linalg.qr(jnp.concatenate([columns.T, beyond]), mode="r")
        _, sizes, vectors = jnp.linalg.svd(triangle)
        return vectors[-1], sizes[-2] if size > 1 else jnp.inf

    evened = jnp.linalg.solve(rows.back, direction)
    for angle in NARROWING:
        evened /= jnp.linalg.norm(evened)
        # What is off by more than the width counts the less, the more it is off.
        width = jnp.hypot(angle, noise_of(rows, rows.back @ evened) / lengths)
        weights = jnp.where(rows.live, width / jnp.hypot(evened @ angles, width), 0.0)
        evened, _ = least(angles * weights[None])
    direction = rows.back @ evened
    for _ in range(2):
        zero = (jnp.abs(values(direction)) < NOISES) & rows.live
        direction, second = least(scaled * zero[None])
        direction *= rows.sizes
    direction /= jnp.linalg.norm(direction)
    found = values(direction)
    zeros = _count((jnp.abs(found) < NOISES) & rows.live)
    lengths = jnp.linalg.norm(rows.right, axis=0)
    usual = jnp.linalg.norm(found) * lengths / jnp.sqrt(rows.rank)
    chance = DENSITY * NOISES / jnp.where(rows.live, usual, jnp.inf)
    chance = jnp.sum(jnp.minimum(chance, 1.0))
    expected = rows.rank - 1 + chance + SURPLUS * jnp.sqrt(chance)
    enough = zeros > expected + MORE - 0.5
    alone = second > NOISES * jnp.sqrt(jnp.maximum(zeros, 1))
    sound = enough & alone & jnp.all(jnp.isfinite(direction))
    sound &= jnp.max(_leverage(rows, zero)) < BEARING
    return Exact(
        direction,
        found / jnp.linalg.norm(found),
        jnp.where(sound, zeros, -1).astype(jnp.int32),
    )


def _leverage(rows: Rows, zero: Array) -> Array:
    """Tells [m] how much of what determines a direction hangs on each column.

    Of the columns in `zero` [m] alone; 1 for one without which the others would leave
    the direction open.
    """
    columns = jnp.where(zero[None], rows.angles, 0.0).astype(rows.right.dtype)
    values, vectors = jnp.linalg.eigh(columns @ columns.T)
    places = _indices(len(values))
    inside = places >= len(values) - rows.rank + 1
    along = (vectors.T @ columns) ** 2 / jnp.where(inside, values, jnp.inf)[:, None]
    return jnp.sum(along, axis=0)


def keep(kept: Exact, new: Exact) -> Exact:
    """Puts a direction where its like is, or in place of the one with fewest zeros."""
    alike = (jnp.abs(kept.row @ new.row) > ALIKE) & (kept.zeros >= 0)
    place = jnp.where(
        jnp.any(alike), _descending(alike)[0], _descending(-kept.zeros)[0]
    )
    better = new.zeros > kept.zeros[place]
    return jax.tree.map(
        lambda old, one: old.at[place].set(jnp.where(better, one, old[place])),
        kept,
        new,
    )


def is_kept(kept: Exact, directions: Array) -> Array:
    """Tells [N] which directions [B, N] are all but one of those kept."""
    cosines = jnp.abs(kept.direction.astype(directions.dtype) @ directions)
    return jnp.any((cosines > ALIKE) & (kept.zeros >= 0)[:, None], axis=0)


def depends_on(kept: Exact, directions: Array) -> Array:
    """Tells [N] which directions [B, N] all but lie in the span of those kept."""
    basis = _basis(kept)[0].astype(directions.dtype)
    left = directions - basis.T @ (basis @ directions)
    return jnp.linalg.norm(left, axis=0) <= APART


def independent(kept: Exact) -> Exact:
    """Chooses B of the directions kept, those with most zeros first.

    One that all but depends on those before it is left out.
    """
    _, taken = _basis(kept)
    kept = kept._replace(zeros=jnp.where(taken, kept.zeros, -1))
    first = _descending(kept.zeros)[: kept.direction.shape[1]]
    return jax.tree.map(lambda leaf: leaf[first], kept)


def _basis(kept: Exact) -> tuple[Array, Array]:
    """Finds an orthonormal basis of the span of the directions kept.

    Returns:
      The basis [B, B], zeros beyond what is spanned; and [P] bool, which directions are
      independent of those with more zeros.
    """
    order = _descending(kept.zeros)
    length = kept.direction.shape[1]

    def add(basis: Array, one: tuple[Array, Array]) -> tuple[Array, Array]:
        direction, zeros = one
        for _ in range(2):  # once more for what rounding leaves
            direction = direction - basis.T @ (basis @ direction)
        left = jnp.linalg.norm(direction)
        new = (zeros >= 0) & (left > APART)
        place = _count(jnp.any(basis != 0, axis=1))
        more = basis.at[jnp.minimum(place, length - 1)].set(direction / left)
        return jnp.where(new & (place < length), more, basis), new & (place < length)

    empty = jnp.zeros((length, length), kept.direction.dtype)
    basis, taken = jax.lax.scan(add, empty, (kept.direction[order], kept.zeros[order]))
    return basis, jnp.zeros_like(taken).at[order].set(taken)
