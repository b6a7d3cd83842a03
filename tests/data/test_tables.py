"""Tables: what their columns are, and what is refused by name."""

import jax
import numpy as np
import pytest

from kljax.core.tables import (
    TableColumn,
    encode_rows,
    read_rows,
    relax_rows,
    table_of,
    write_cells,
)
from kljax.data import Dataset, load
from kljax.data.tables import TABLES

SIZE = TableColumn("size", (0,), low=10.0, high=20.0, tolerance=0.1)
COLOUR = TableColumn("colour", (1, 2, 3), categories=("red", "green", "blue"))
SPEC = table_of((SIZE, COLOUR))
ROWS = np.array([[0.5, 0, 0, 1], [1, 1, 0, 0]], np.float32)


def dataset(rows):
    labels = np.arange(len(rows)) % 2
    return Dataset("mine", rows, labels, 2, None, "-", input_spec=SPEC)


def test_a_table_is_encoded_and_written():
    np.testing.assert_array_equal(encode_rows([[15, 2], [20, 0]], SPEC.columns), ROWS)
    np.testing.assert_array_equal(dataset(ROWS).inputs, ROWS)
    assert SPEC.spell(ROWS[0]) == "size=15; colour=blue"
    # Of a guess the largest entry counts.
    guess = np.array([0.25, 0.3, 0.5, 0.1])
    assert write_cells(guess, SPEC.columns) == ["size=12.5", "colour=green"]


@pytest.mark.parametrize(
    ("values", "message"),
    (
        (
            [[15, 3]],
            "row 0 of the table, column 'colour', has 3; give the place of one",
        ),
        ([[15, 0], [15, 1.5]], "row 1 of the table, column 'colour', has 1.5"),
        ([[15, -1]], "'colour', has -1; .* 3 categories, 0 to 2"),
        ([[np.nan, 0]], "column 'size', has nan; give a finite number"),
        ([[15, np.inf]], "column 'colour', has inf; give a finite number"),
        ([[21, 0]], r"column 'size', has 21; give a number in \[10, 20\]"),
        ([[15, 0, 1]], r"shape \(1, 3\); give \[n, 2\], one number"),
        ([15, 0], r"shape \(2,\)"),
    ),
)
def test_a_table_that_is_none_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        encode_rows(values, SPEC.columns)


def changed(place, value):
    rows = ROWS.copy()
    rows[place] = value
    return rows


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    (
        (changed((1, 0), np.nan), ValueError, r"row 1 of .*'mine' has \[nan\].*'size'"),
        (changed((1, 2), np.inf), ValueError, "row 1 .*'colour': not finite"),
        (changed((0, 0), 1.5), ValueError, r"row 0 .*has 1.5 in column 'size'"),
        (
            changed((0, 1), 1),
            ValueError,
            "row 0 .*discrete column 'colour'; give one 1",
        ),
        (changed((0, 3), 0.5), ValueError, "row 0 .*discrete column 'colour'"),
        (ROWS[:, :3], ValueError, r"shape \(2, 3\); give \[n, 4\].* its 2 columns"),
        (ROWS.astype(int), TypeError, "rows of dataset 'mine' are int64"),
    ),
)
def test_rows_that_are_none_are_refused(rows, error, message):
    with pytest.raises(error, match=message):
        dataset(rows)


@pytest.mark.parametrize(
    ("make", "message"),
    (
        (
            lambda: table_of((SIZE, TableColumn("b", (0,)))),
            "'size' and 'b' overlap.* 0",
        ),
        (lambda: table_of((SIZE, SIZE)), "'size' is there twice"),
        (lambda: table_of((SIZE, TableColumn("b", (2,)))), "entry 1 is amiss"),
        (lambda: table_of(()), "at least one column"),
        (lambda: TableColumn("b", (0, 1)), "is continuous and has one entry, got 2"),
        (lambda: TableColumn("b", (0, 1), ("x",)), "1 categories need as many entries"),
        (lambda: TableColumn("b", (0,), ("x",)), "at least two categories"),
        (lambda: TableColumn("b", (0,), low=1.0), "low=1.0 must be below high=1.0"),
        (
            lambda: TableColumn("b", (0,), tolerance=-1),
            "tolerance=-1 must be 0 or more",
        ),
        (lambda: TableColumn("b;c", (0,)), "'b;c': its name must be without"),
        (lambda: TableColumn("b=c", (0,)), "'b=c': its name must be without"),
    ),
)
def test_columns_that_are_none_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_relaxed_rows_are_inside_and_read_as_rows():
    latents = 3 * np.random.default_rng(0).standard_normal((5, 4), np.float32)
    relaxed = np.asarray(relax_rows(latents, SPEC.columns))
    shares = np.exp(latents[:, 1:]) / np.exp(latents[:, 1:]).sum(1, keepdims=True)
    np.testing.assert_allclose(relaxed[:, 1:], shares, rtol=1e-5)
    np.testing.assert_allclose(
        relaxed[:, 0], 1 / (1 + np.exp(-latents[:, 0])), rtol=1e-5
    )
    read = np.asarray(read_rows(relaxed, SPEC.columns))
    assert (read[:, 1:].argmax(1) == latents[:, 1:].argmax(1)).all()
    dataset(read)  # is a table
    dataset(np.asarray(SPEC.draw(jax.random.key(0), 6)))


DISCRETE = {"breast-cancer": 10, "wine": 4, "diabetes": 1}


@pytest.mark.parametrize("name", TABLES)
def test_embedded_tables_are_mixed(name):
    data = load(name)
    columns = data.input_spec.columns
    assert sum(column.is_discrete for column in columns) == DISCRETE[name]
    assert (
        data.name == name and len(data.licence) > 20 and data.inputs.dtype == np.float32
    )
    assert set(data.labels.tolist()) == set(range(len(data.class_names)))
    for column in columns:
        own = data.inputs[:, list(column.entries)]
        if column.is_discrete:
            assert (own.sum(axis=0) > 0).all()  # every category is there
        else:
            assert (own.min(), own.max()) == (0, 1)
            assert column.tolerance == pytest.approx(0.319 * own.std(), rel=1e-4)
    with pytest.raises(ValueError, match=f"'{name}' has no splits"):
        load(name, split="test")


def test_the_quartiles_of_a_cut_column_are_as_large():
    data = load("breast-cancer")
    column = data.input_spec.columns[-1]
    assert column.name == "worst fractal dimension"
    shares = data.inputs[:, list(column.entries)].mean(axis=0)
    np.testing.assert_allclose(shares, 0.25, atol=0.01)
