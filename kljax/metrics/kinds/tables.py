"""Rows of tables as a kind of input: scores, floors, and when one is recovered."""

import numpy as np

from kljax.core.inputs import InputSpec
from kljax.core.tables import BETWEEN, write_cells
from kljax.metrics import outcomes, rows
from kljax.metrics.kinds.kind import Having, Kind, Row, Scores


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


def _best_floors(
    truths: np.ndarray,
    made: list[dict[str, np.ndarray]],
    scores: dict[str, Having],
) -> Scores:
    del made
    best = np.zeros(len(truths))
    for having, its in scores.values():
        best[having] = np.maximum(best[having], its["cell_accuracy"])
    return {"floor_cell_accuracy": best}


def _outcome(
    row: Row, matching_loss: float | None, loss_floor: float | None, finite: bool
) -> str:
    """Names the outcome: recovered is judged by the cells that are wrong.

    At least half are right, and at most half as many wrong as in the best floor. Where
    a floor has all of them right, a guess that has is none that leaked.
    """
    accuracy, floor = row["cell_accuracy"], row["floor_cell_accuracy"]
    wrong, allowed = 1 - accuracy, outcomes.SUCCESS_FLOOR_SHARE * (1 - floor)
    right = accuracy >= rows.SUCCESS_CELLS and wrong <= allowed and floor < 1
    return outcomes.judge(
        right=right, matching_loss=matching_loss, loss_floor=loss_floor, finite=finite
    )


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

MEANINGS = {
    "success": "all cells of the row are right: categories, and numbers within the "
    "tolerance of their column",
    "floor": "what the best row made without any gradient reaches on the same victims; "
    "some know the true label, and nearest_same_class is chosen by the truth",
    "recovered": "at least half of the cells are right, and at most half as many are "
    "wrong as in the row's best floor",
    "recovered_affine": "of images alone: no row is recovered up to anything",
    "ambiguous": "matched but wrong: the gradient is matched and the row is not "
    "recovered. Evidence for a defence only where the undefended arm of the same cell "
    "is recovered; verdicts count those rows",
}

TABLES = Kind(
    score=score_rows,
    primary="cell_accuracy",
    caption=lambda accuracy: f"{accuracy:.0%} of cells",
    reference=_reference,
    floors=tuple(rows.ROW_FLOORS),
    make_floors=rows.floor_rows,
    best_floors=_best_floors,
    success=lambda row: bool(row["exact_match"]),
    success_words="all cells",
    reading=READING,
    outcome=_outcome,
    noun="row",
    success_share="rows with all cells right",
    meanings=MEANINGS,
    mark=mark_cells,
)
