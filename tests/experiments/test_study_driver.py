"""The driver of experiments/study.py: parts, budget, and what was not run."""

import importlib
import math
import os
import sys
import types
from pathlib import Path

import lock_changes
import pyarrow
import pytest
import study
from studies.published import TABLE_6, beside_paper

from kljax.studies.sweeps import expand, read_sweep

EXPERIMENTS = Path(__file__).parents[2] / "experiments"

PART = """# A tiny part.
# Nothing is learnt from it.

[fixed]
model = "dense"
image_size = 8
victims = 2
steps = 3

[axes]
arm = ["none", "keylock/known"]
seed = [0, 1]
"""


@pytest.fixture
def part(tmp_path, monkeypatch):
    path = tmp_path / "1-tiny.toml"
    path.write_text(PART, encoding="utf-8")
    monkeypatch.setattr(study, "PARTS", [path])
    return path


def call(monkeypatch, *options):
    monkeypatch.setattr(sys, "argv", ["study.py", *map(str, options)])
    study.main()


@pytest.mark.parametrize("path", importlib.import_module("study").PARTS, ids=str)
def test_every_part_can_be_written_out(path):
    grid = expand(read_sweep(path))
    assert grid.cells and grid.illegal == 0


@pytest.mark.slow
def test_a_part_is_run_and_what_it_took_is_kept(part, tmp_path, monkeypatch):
    out, table = tmp_path / "out", tmp_path / "1-tiny.md"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, sys.path)))
    call(monkeypatch, "--out", out, "--tables", tmp_path)
    spent = study.spent(out)
    assert spent["1-tiny"] > 1
    text = table.read_text(encoding="utf-8")
    assert "not run" not in text and "A tiny part. Nothing is" in text.replace(
        "\n", " "
    )
    # What is finished costs nothing but a look; the numbers stay.
    call(monkeypatch, "--out", out, "--tables", tmp_path, "--hours", 0)
    assert study.spent(out) == spent
    assert table.read_text(encoding="utf-8") == text
    # Where a part was not begun, its table from elsewhere stays, too.
    call(monkeypatch, "--out", tmp_path / "else", "--tables", tmp_path, "--hours", 0)
    assert table.read_text(encoding="utf-8") == text


def test_a_folder_for_the_tables_is_made(part, tmp_path, monkeypatch):
    folder = tmp_path / "new" / "tables"
    call(monkeypatch, "--out", tmp_path / "o", "--tables", folder, "--hours", 0)
    assert "not run" in (folder / "1-tiny.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_part_whose_cells_fail_is_named(part, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, sys.path)))
    part.write_text(PART.replace('model = "dense"', 'from_run = "nowhere"'))
    with pytest.raises(SystemExit, match="cells failed in 1-tiny"):
        call(monkeypatch, "--out", tmp_path / "out")


def test_what_does_not_fit_the_budget_is_printed_as_not_run(
    part, tmp_path, monkeypatch, capsys
):
    call(monkeypatch, "--out", tmp_path / "out", "--hours", 0)
    assert "not run" in capsys.readouterr().out
    assert study.spent(tmp_path / "out") == {}


def test_the_papers_rows_stand_beside_those_of_a_study():
    row = {"data": "digits", "attack": "dlg", "ssim_affine_oracle": 1.0, "ssim": 0.5}
    rows = [
        row | {"arm": "none", "rmse255": 10.0, "psnr_fedkl": 40.0},
        row | {"arm": "none", "rmse255": 0.0, "psnr_fedkl": math.inf},
        row | {"arm": "floor/grey", "rmse255": 90.0, "psnr_fedkl": 28.0},
    ]
    study = types.SimpleNamespace(rows=pyarrow.Table.from_pylist(rows))
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in beside_paper(study).splitlines()[2:]
    ]
    assert len(lines) == len(TABLE_6) + 1
    assert ["dlg", "MNIST", "FedKL", "paper", "140.87", "26.64", "-0.003", ""] in lines
    mine = [
        "dlg",
        "digits",
        "none",
        "2",
        "5.00",
        "40.00 (1 left out)",
        "0.500",
        "1.000",
    ]
    assert mine in lines


def test_the_papers_two_figures_are_one():
    """Its "PSNR" follows from its RMSE, nearly: means of each are not those of both."""
    for _, (rmse, psnr, _) in TABLE_6.items():
        # 10 log10 is concave in 1 / RMSE: the mean of PSNRs is above the PSNR of means.
        assert psnr > 10 * math.log10(255**2 / rmse) - 0.05


def test_changes_of_the_lock_are_those_that_are_attacked():
    """What a change costs and what it is worth are of the same changes."""
    attacked = read_sweep(EXPERIMENTS / "study" / "04-lock-changes.toml")
    points = attacked.axes["lock"].values()
    trained = [dict(change) for change in lock_changes.CHANGES.values()]
    for point in points:
        plain = {k: tuple(v) if isinstance(v, list) else v for k, v in point.items()}
        assert plain in trained
