"""Scores and floors of rows of tables, by hand."""

import numpy as np
import pytest

from kljax.core.tables import TableColumn, table_of
from kljax.metrics.kinds import KINDS
from kljax.metrics.rows import RowReference, floor_rows, right_cells

COLUMNS = (
    TableColumn("size", (0,), tolerance=0.125),
    TableColumn("colour", (1, 2, 3), categories=("red", "green", "blue")),
)
SPEC = table_of(COLUMNS)
KIND = KINDS["table"]
TRUTH = np.array([0.5, 0, 1, 0], np.float32)


@pytest.mark.parametrize(
    ("guess", "right"),
    (
        ([0.5, 0, 1, 0], (True, True)),
        ([0.625, 0.1, 0.2, 0.15], (True, True)),  # exactly at the tolerance
        ([0.374, 0, 1, 0], (False, True)),
        ([0.5, 1, 0, 0], (True, False)),
        ([np.nan, 0, 1, 0], (False, True)),
        ([0.5, np.nan, 1, 0], (True, False)),
    ),
)
def test_a_cell_is_right_by_category_or_within_the_tolerance(guess, right):
    guess = np.array([guess], np.float32)
    assert tuple(right_cells(guess, TRUTH[None], COLUMNS)[0]) == right
    table = KIND.score(guess, TRUTH[None], SPEC)
    assert table["cell_accuracy"][0] == np.mean(right)
    assert table["exact_match"][0] == all(right)
    assert table["discrete_accuracy"][0] == right[1]
    assert table["continuous_accuracy"][0] == right[0]
    assert table["cells_right"][0] == "".join(str(int(one)) for one in right)
    error = abs(guess[0, 0] - 0.5)
    np.testing.assert_allclose(table["continuous_error"], [error], rtol=1e-6)


def test_scores_of_columns_that_are_not_there_are_left_out():
    numbers = table_of(COLUMNS[:1])
    table = KIND.score(TRUTH[None, :1], TRUTH[None, :1], numbers)
    assert "discrete_accuracy" not in table and table["continuous_accuracy"][0] == 1
    with pytest.raises(ValueError, match="must have one shape"):
        right_cells(TRUTH[None], TRUTH[None, :1], COLUMNS)


def test_what_is_wrong_is_marked():
    guess = np.array([0.9, 0, 1, 0])
    assert KIND.mark(guess, TRUTH, SPEC) == "[size=0.9]; colour=green"


@pytest.mark.parametrize(
    ("accuracy", "floor", "loss", "outcome"),
    (
        (1.0, 0.5, 1.0, "recovered"),
        (0.75, 0.5, 1.0, "recovered"),
        (0.7, 0.5, 1.0, "unsolved"),
        (0.7, 0.5, 0.0, "ambiguous"),
        (0.5, 0.0, 1.0, "recovered"),  # exactly half
        (0.4, 0.0, 0.0, "ambiguous"),  # less than half
        (1.0, 1.0, 0.0, "ambiguous"),  # a floor has it all: no leak
        (1.0, 0.5, np.nan, "diverged"),
    ),
)
def test_outcomes_of_a_row(accuracy, floor, loss, outcome):
    row = {"cell_accuracy": accuracy, "floor_cell_accuracy": floor}
    assert KIND.outcome(row, loss, 0.5, True) == outcome


REFERENCE = RowReference(
    np.array(
        [[0.5, 0, 1, 0], [0.25, 1, 0, 0], [0.75, 1, 0, 0], [0.625, 0, 1, 0]],
        np.float32,
    ),
    np.array([0, 0, 1, 0]),
    np.array([10, 11, 12, 13]),
    COLUMNS,
)


def test_floors_by_hand():
    made = floor_rows(TRUTH, 0, 10, REFERENCE, seed=0)
    np.testing.assert_allclose(made["typical"], [1.625 / 3, 1, 0, 0])
    # One is red and one is green; of equals the first.
    np.testing.assert_allclose(made["class_typical"], [0.4375, 1, 0, 0])
    np.testing.assert_array_equal(made["nearest_same_class"], [0.625, 0, 1, 0])
    assert made["same_class"].tolist() in REFERENCE.rows[[1, 3]].tolist()
    assert made["marginals"][0] in REFERENCE.rows[1:, 0]
    assert set(made) == set(KIND.floors)


def test_a_victim_is_no_part_of_its_floors():
    lone = RowReference(TRUTH[None], np.array([0]), np.array([10]), COLUMNS)
    assert floor_rows(TRUTH, 0, 10, lone, seed=0) == {}
    others = floor_rows(TRUTH, 1, 10, REFERENCE, seed=0)
    np.testing.assert_array_equal(others["nearest_same_class"], [0.75, 1, 0, 0])
    with pytest.raises(ValueError, match="another row under index 10"):
        floor_rows(TRUTH + 1, 0, 10, REFERENCE, seed=0)


def test_the_best_floor_is_that_with_most_cells():
    accuracy = {
        "typical": ([0, 1], {"cell_accuracy": np.array([0.5, 0.25])}),
        "same_class": ([1], {"cell_accuracy": np.array([0.75])}),
    }
    found = KIND.best_floors(np.zeros((2, 4)), [{}] * 2, accuracy)
    assert found["floor_cell_accuracy"].tolist() == [0.5, 0.75]
