"""Compares a guessed row of a table with the true one, and with what nobody steals.

A cell is right if the category is, or, of a continuous column, if the guess is within
the column's tolerance (`kljax.core.tables.TableColumn`). Letters: n rows, D entries of
a row, k columns.

A *floor* is a row that was made without the victim's gradient.

| floor              | what it uses                                           | oracle |
|--------------------|--------------------------------------------------------|--------|
| typical            | mean of each continuous column, mode of each discrete  | no     |
| class_typical      | the same of the rows with the victim's label           | no     |
| marginals          | a draw from each column by itself                      | no     |
| same_class         | another row of that label                              | no     |
| nearest_same_class | of these the one with most cells right                 | yes    |

The last reads the victim: so much says a row of somebody alike. The victim itself is
never part of what represents it: its index is left out.

Guesses at a batch are paired with the truth before they are scored (`kljax.metrics.
assign`, by squared distance of the rows), which is worth something to any B guesses,
and more in larger batches. What it is worth to B rows of the right labels is less than
`nearest_same_class`, for which every row of the reference is tried.
"""

import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from kljax.core.tables import TableColumn, read_rows


def right_cells(
    guesses: np.ndarray, truths: np.ndarray, columns: Sequence[TableColumn]
) -> np.ndarray:
    """Tells which cells [n, k] of guesses [n, D] are right.

    Of a discrete column the largest entry of its group is the guess. NaN is wrong.

    Raises:
      ValueError: for guesses of another shape than the truths.
    """
    guesses, truths = np.asarray(guesses), np.asarray(truths)
    if guesses.shape != truths.shape or guesses.ndim != 2:
        raise ValueError(
            f"guesses {guesses.shape} and truths {truths.shape} must have one shape "
            "[n, D]"
        )
    found = np.zeros((len(truths), len(columns)), bool)
    for place, column in enumerate(columns):
        guess, truth = (side[:, list(column.entries)] for side in (guesses, truths))
        finite = np.isfinite(guess).all(axis=1)
        if column.is_discrete:
            right = np.argmax(guess, axis=1) == np.argmax(truth, axis=1)
        else:
            # What is exactly at the tolerance must not hang on float32's rounding.
            error = abs(guess.astype(float) - truth)[:, 0]
            right = error <= column.tolerance * (1 + 1e-6)
        found[:, place] = right & finite
    return found


def continuous_errors(
    guesses: np.ndarray, truths: np.ndarray, columns: Sequence[TableColumn]
) -> np.ndarray:
    """Averages over the continuous columns the absolute error in ranges: [n].

    A column's range is from `low` to `high`. NaN without a continuous column.
    """
    places = [c.entries[0] for c in columns if not c.is_discrete]
    if not places:
        return np.full(len(truths), np.nan)
    return np.mean(abs(guesses[:, places].astype(float) - truths[:, places]), axis=1)


class RowReference(NamedTuple):
    """Rows that are known to the attacker, and that floors are made of."""

    rows: np.ndarray  # [n, D]
    labels: np.ndarray  # [n]
    indices: np.ndarray  # [n], where they are in the dataset
    columns: tuple[TableColumn, ...]

    def without(self, index: int, label: int | None = None) -> np.ndarray:
        """Gives the rows [m, D] but that of `index`, of one label or of all."""
        kept = self.indices != index
        if label is not None:
            kept = kept & (self.labels == label)
        return self.rows[kept]


class Victim(NamedTuple):
    """The row that a floor stands for."""

    row: np.ndarray  # [D]
    label: int
    index: int
    rng: np.random.Generator


def typical(victim: Victim, reference: RowReference) -> np.ndarray | None:
    """Takes each column's mean, or commonest category."""
    return _typical(reference.without(victim.index), reference.columns)


def class_typical(victim: Victim, reference: RowReference) -> np.ndarray | None:
    """Takes the same of the rows of the victim's label."""
    own = reference.without(victim.index, victim.label)
    return _typical(own, reference.columns)


def marginals(victim: Victim, reference: RowReference) -> np.ndarray | None:
    """Draws each column from another row."""
    others = reference.without(victim.index)
    if not len(others):
        return None
    row = np.empty_like(others[0])
    for column in reference.columns:
        entries = list(column.entries)
        row[entries] = others[victim.rng.integers(len(others)), entries]
    return row


def same_class(victim: Victim, reference: RowReference) -> np.ndarray | None:
    """Picks another row of the victim's label."""
    others = reference.without(victim.index, victim.label)
    return others[victim.rng.integers(len(others))] if len(others) else None


def nearest_same_class(victim: Victim, reference: RowReference) -> np.ndarray | None:
    """Picks the row of the victim's label with most cells right (oracle).

    Among equals it is the one with the least error of continuous columns.
    """
    others = reference.without(victim.index, victim.label)
    if not len(others):
        return None
    truths = np.broadcast_to(victim.row, others.shape)
    right = right_cells(others, truths, reference.columns).sum(axis=1)
    errors = np.nan_to_num(continuous_errors(others, truths, reference.columns))
    return others[np.lexsort((errors, -right))[0]]


ROW_FLOORS: dict[str, Callable[..., np.ndarray | None]] = {
    "typical": typical,
    "class_typical": class_typical,
    "marginals": marginals,
    "same_class": same_class,
    "nearest_same_class": nearest_same_class,
}


def floor_rows(
    row: np.ndarray, label: int, index: int, reference: RowReference, seed: int
) -> dict[str, np.ndarray]:
    """Makes every floor of one row: name -> row [D].

    It depends on the victim, the reference and the seed only. A floor without another
    row to use is left out.

    Raises:
      ValueError: for a row that is another one than the reference has under its index.
    """
    same = reference.rows[reference.indices == index]
    if len(same) and np.any(same[0] != row):
        raise ValueError(
            f"floors: the reference holds another row under index {index} than the "
            "victim; number both by the same dataset"
        )
    made = {}
    for name, floor in ROW_FLOORS.items():
        # Of the name, not of its place: a new floor does not change the old ones.
        rng = np.random.default_rng([seed, index, zlib.crc32(name.encode())])
        found = floor(Victim(np.asarray(row), int(label), int(index), rng), reference)
        if found is not None:
            made[name] = np.asarray(found, np.float32)
    return made


def _typical(rows: np.ndarray, columns: Sequence[TableColumn]) -> np.ndarray | None:
    # The mean of a one-hot group is largest at its commonest category.
    return np.asarray(read_rows(rows.mean(axis=0), columns)) if len(rows) else None
