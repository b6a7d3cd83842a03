"""Studies of tables: from the option to the report."""

import csv
import functools
import re

import pytest
from tiny_studies import quick_compilation, scored, tiny

from kljax import cli
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


@pytest.mark.slow
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
    found = leak_summary.summarise(result, missed)
    assert found["by_column"]["none"]["age"] == 0.5
    assert found["by_column"]["none"]["sex"] == 1
    columns = [column.name for column in result.dataset.input_spec.columns]
    assert [*found["by_column"]["none"]] == columns
    hostile = {"text": first["text"].replace("age", "a|<b")}
    odd = [row | hostile if row["cells_right"][0] == "0" else row for row in missed]
    lines = leak_report.markdown(result, leak_summary.summarise(result, odd))
    assert re.search(r"^\| a\\\|&lt;b +\| \S+ +\| \S+ +\|$", lines, re.M)
    assert re.search(r"^\| sex +\| \d +\| \*\*\d\*\* +\|$", lines, re.M)
    leak_report.write_run(tmp_path / "run", result, rows, summary)
    page = (tmp_path / "run" / "summary.md").read_text()
    assert "The first rows:\n\n| column" in page
    assert "- none, right by column: age 100%, sex 100%" in page
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
        ({"observations": 2}, "'tableak' pools its restarts.* write observations=1"),
    ),
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        build_study(LeakConfig(**TABLE | changes))


SWEEP = """
[axes]
arm = ["none", "keylock/regress_gates"]

[options]
reconstructions = true

[fixed]
model = "perceptron"
data = "wine"
attack = "tableak"
examples = 2
victims = 2
restarts = 2
steps = 20
"""


@pytest.mark.slow
def test_a_sweep_of_tables_is_reported_cell_by_cell(tmp_path):
    file, folder = tmp_path / "sweep.toml", tmp_path / "study"
    file.write_text(SWEEP)
    with quick_compilation():
        assert cli.main(["sweep", str(file), "--out", str(folder)]) == 0
    page = (folder / "report" / "report.html").read_text()
    assert '<table class="cells">' in page and "<td>flavanoids</td>" in page
    assert "SSIM" not in page and "rows recovered / " in page


@pytest.mark.slow
def test_a_client_of_a_training_on_tables_is_attacked(tmp_path):
    run, out = tmp_path / "fl", tmp_path / "leak"
    words = "train --model perceptron --data wine --rounds 2 --batch 4 --clients 2"
    options = "--learning-rate 0.1 --arms none keylock --keep-rounds 0 1 --out"
    with quick_compilation():
        assert cli.main([*words.split(), *options.split(), str(run)]) == 0
    words = f"leak --from {run} --round 1 --victims 2 --attack tableak --steps 150"
    options = f"--restarts 2 --arms none keylock/known --risk --out {out}"
    with quick_compilation():
        assert cli.main([*words.split(), *options.split()]) == 0
    with (out / "rows.csv").open(newline="") as opened:
        rows = [row for row in csv.DictReader(opened) if row["attack"]]
    assert {row["arm"] for row in rows} == {"none", "keylock/known"}
    assert all(float(row["risk_largest"]) > 0 for row in rows)
    assert all(0 <= float(row["cell_accuracy"]) <= 1 for row in rows)
