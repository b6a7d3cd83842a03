"""Rows of tables as a kind of input: scores, floors, and when one is recovered."""

import numpy as np

from kljax.core.inputs import InputSpec
from kljax.core.tables import BETWEEN, write_cells
from kljax.metrics import rows
from kljax.metrics.kinds import parts
from kljax.metrics.kinds.kind import Kind, Scores


def score_rows(guesses: np.ndarray, truths: np.ndarray, spec: InputSpec) -> Scores:
    """Scores guesses [n, D] against truths, see `kljax.metrics.rows`."""
    columns = spec.columns
    right = rows.right_cells(guesses, truths, columns)
    discrete = np.array([column.is_discrete for column in columns])
    table: Scores = {
        "cell_accuracy": right.mean(axis=1),
        "exact_match": right.all(axis=1),
    }
    if discrete.any():
        table["discrete_accuracy"] = right[:, discrete].mean(axis=1)
    if not discrete.all():
        table["continuous_accuracy"] = right[:, ~discrete].mean(axis=1)
        errors = rows.continuous_errors(guesses, truths, columns)
        table["continuous_error"] = errors
    table["text"] = np.array([spec.spell(truth) for truth in truths])
    table["text_guess"] = np.array([spec.spell(guess) for guess in guesses])
    table["cells_right"] = np.array(
        ["".join("01"[int(cell)] for cell in of_row) for of_row in right]
    )
    return table


def mark_cells(guess: np.ndarray, truth: np.ndarray, spec: InputSpec) -> str:
    """Writes a guess [D] with square brackets around the cells that are wrong."""
    right = rows.right_cells(guess[None], truth[None], spec.columns)[0]
    cells = zip(write_cells(guess, spec.columns), right, strict=True)
    return BETWEEN.join(cell if sure else f"[{cell}]" for cell, sure in cells)


def _reference(inputs, labels, indices, spec: InputSpec) -> rows.RowReference:
    sides = map(np.asarray, (inputs, labels, indices))
    return rows.RowReference(*sides, spec.columns)


READING = """\
How to read it. A cell is right if its category is, or if its number is within .319 of
its column's standard deviation, or whatever tolerance the column has. *recovered*: at
least half of the cells are right, and at most half as many are wrong as in the best
floor. *unsolved*: the attack did not match the gradient, which says nothing for a
defence. *ambiguous*: matched but wrong; that is evidence for a defence only where the
undefended arm of the same cell is recovered. Floors are rows made without any gradient;
`class_typical` and `same_class` know the true label, and `nearest_same_class` is chosen
by the truth: so much says the row of somebody alike. Means hide spread: `rows.csv` has
every row."""

MEANINGS = parts.meanings_of(
    "row",
    "cells are right",
    success="all cells of the row are right: categories, and numbers within the "
    "tolerance of their column",
    floor="what the best row made without any gradient reaches on the same victims; "
    "some know the true label, and nearest_same_class is chosen by the truth",
)

TABLES = Kind(
    score=score_rows,
    primary="cell_accuracy",
    caption=lambda accuracy: f"{accuracy:.0%} of cells",
    reference=_reference,
    floors=tuple(rows.ROW_FLOORS),
    make_floors=rows.floor_rows,
    best_floors=parts.best_floors_by("cell_accuracy"),
    success=lambda row: bool(row["exact_match"]),
    success_words="all cells",
    reading=READING,
    outcome=parts.outcome_by("cell_accuracy", beyond_floor=True),
    noun="row",
    success_share="rows with all cells right",
    meanings=MEANINGS,
    mark=mark_cells,
)
