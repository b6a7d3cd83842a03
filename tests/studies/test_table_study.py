"""Studies of tables: from the option to the report."""

import functools

import pytest
from tiny_studies import quick_compilation, scored, tiny

from kljax.metrics import COLUMNS
from kljax.studies import leak_report, leak_summary, leakage
from kljax.studies.builder import from_run
from kljax.studies.builder.study import build_study
from kljax.studies.config import LeakConfig

TABLE = {
    "model": "perceptron",
    "data": "diabetes",
    "attack": "tableak",
    "arms": ("none",),
    "victims": 2,
    "restarts": 2,
    "steps": 200,
    "layout": tiny().layout,
}


@functools.cache
def finished():
    with quick_compilation():
        result = leakage.leak(LeakConfig(**TABLE))
    return result, scored(result)


def test_rows_are_recovered_and_floors_are_not_all_of_them():
    _, rows = finished()
    for row in rows:
        assert row.keys() == COLUMNS.keys()
        assert row["kind"] == "table" and 0 <= row["cell_accuracy"] <= 1
        for column in ("ssim", "mse", "image_size", "channels", "tokens"):
            assert row[column] is None, column
    for row in rows:
        if row["arm"] == "none":
            assert row["success"] and row["outcome"] == "recovered"
            assert row["cells_right"] == "1" * 10
            assert 0 <= row["cell_entropy"] <= 1
            assert row["floor_cell_accuracy"] < 1
            assert row["text"].startswith("age=")
        else:
            assert row["outcome"] is None and not row["success"]


def test_the_report_writes_rows_and_marks_what_is_wrong(tmp_path):
    result, rows = finished()
    summary = leak_summary.summarise(result, rows)
    # As if the first cell of the first row had been missed.
    first = next(row for row in rows if row["arm"] == "none")
    missed = [
        row | {"cells_right": "0" + "1" * 9} if row is first else row for row in rows
    ]
    marked = leak_summary.summarise(result, missed)["sentences"]
    assert marked[1].startswith("none: [age=") and marked[1].endswith("% of cells)")
    leak_report.write_run(tmp_path / "run", result, rows, summary)
    page = (tmp_path / "run" / "summary.md").read_text()
    assert f"The first rows:\n\n- truth: {first['text']}" in page
    assert "| all cells [95 %]" in page and "| rows" in page and "SSIM" not in page
    assert (tmp_path / "run" / "gallery.png").stat().st_size > 5000


def test_networks_of_tables_draw_their_weights_themselves():
    for changes in ({"model": "perceptron"}, {"model": "mine:Own", "data": "wine"}):
        assert from_run.settle(LeakConfig(**changes)).init == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    (
        ({"model": "lenet"}, "takes inputs of kind 'image', .* take perceptron"),
        (
            {"data": "digits", "attack": "dlg"},
            "'perceptron' takes inputs of kind 'table'",
        ),
        ({"attack": "matching"}, "holds table.*tableak"),
        ({"labels": "joint"}, "'joint' optimises them"),
    ),
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build_study(LeakConfig(**TABLE | changes))
