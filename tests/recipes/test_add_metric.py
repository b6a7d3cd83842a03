"""Recipe: a metric, or a number that an attack reports. One function, one column."""

import json

import pyarrow.parquet
import pytest

from kljax import cli, store

METRIC = """
import jax.numpy as jnp
import numpy as np
from kljax import metrics

@metrics.metric("how much rougher the guess is than the truth", leaks=-1, form=".2f")
def roughness(guess, truth):
    return jnp.mean(jnp.abs(jnp.diff(guess, axis=0))) - jnp.mean(
        jnp.abs(jnp.diff(truth, axis=0))
    )

@metrics.metric("dark pixels of the guess", dtype="int64", compiled=False, form=".0f")
def dark(guess, truth):
    assert isinstance(guess, np.ndarray) and 0 <= guess.min() and guess.max() <= 1
    return int((guess.mean(axis=-1) < .5).sum())
"""
ATTACK = """
import jax.numpy as jnp
from kljax import metrics
from kljax.attacks import Reconstruction
from kljax.attacks.presets import Preset

def build(setting, optimiser=None, *, steps, restarts):
    def attack(rng, view):
        return Reconstruction(
            inputs=jnp.full((1, *setting.task.image_shape), .5),
            labels=jnp.zeros(1, int),
            loss=jnp.zeros(()),
            finite=jnp.array(True),
            numbers={"NAME": jnp.linalg.norm(view.grads.model["fc/bias"])},
        )
    return attack

length = metrics.Column(
    name="length", meaning="length of the bias gradient", knows="attacker",
    rows="attack", form=".1e", shown="report",
)
attack = Preset(build, "recovered", None, columns=(length,))
"""


def said(capsys, folder):
    capsys.readouterr()
    assert cli.main(["columns", folder]) == 0
    return capsys.readouterr().out


def test_a_metric_is_in_rows_and_tables(mine, leak, capsys):
    mine(METRIC)
    job = leak("--metrics", "mine:roughness", "mine:dark")
    for row in job.rows:  # of floors, too
        assert 0 <= int(row["dark"]) <= 64
        assert abs(float(row["roughness"])) < 1
    grey = next(row for row in job.rows if row["arm"] == "floor/grey")
    assert float(grey["roughness"]) < 0 and grey["dark"] == "0"
    head = next(line for line in job.report.splitlines() if line.startswith("| arm"))
    assert "| roughness " in head and "| dark " in head
    summary = json.loads((job.folder / "summary.json").read_text())
    assert summary["floors"]["grey"]["roughness"] == float(grey["roughness"])
    assert "dark pixels of the guess" in said(capsys, str(job.folder))


@pytest.mark.slow
def test_a_metric_is_tabled_by_a_report_that_has_not_its_module(
    mine, tmp_path, monkeypatch, capsys
):
    mine(METRIC)
    (tmp_path / "sweep.toml").write_text(
        """
        [fixed]
        model = "dense"
        image_size = 8
        victims = 2
        steps = 2
        optimiser = "adam"
        metrics = "mine:roughness"
        [axes]
        arm = ["none", "magnitude-pruning=0.5"]
        """
    )
    command = ["sweep", "sweep.toml", "--out", "study", "--no-report"]
    assert cli.main(command) == 0
    (tmp_path / "mine.py").unlink()
    monkeypatch.delitem(__import__("sys").modules, "mine")
    study = store.read("study")
    column = study.columns["roughness"]
    assert (column.leaks, column.form, column.knows) == (-1, ".2f", "scorer")
    assert len(set(study.rows["roughness"].to_pylist())) > 4
    assert cli.main(["report", "study", "--value", "roughness"]) == 0
    assert "roughness (float64, lower leaks more, scorer knows)" in said(
        capsys, "study"
    )
    page = (tmp_path / "study" / "report" / "report.md").read_text()
    assert "roughness [95 %]" in page and "how much rougher" not in page
    for part in (tmp_path / "study" / "parts").iterdir():
        assert pyarrow.parquet.read_schema(part).names[-1] == "roughness"


def test_a_number_of_an_attack_is_in_rows_and_report(mine, leak):
    mine(ATTACK.replace("NAME", "length"))
    job = leak("--attack", "mine:attack")
    (row,) = job.of_arms()
    assert float(row["length"]) > 0
    assert all(row["length"] == "" for row in job.rows if "floor/" in row["arm"])
    assert "| length " in job.report


@pytest.mark.parametrize("name", ("width", "ssim", "seed"))
def test_a_number_without_a_column_of_its_own_is_refused(mine, leak, capsys, name):
    mine(ATTACK.replace("NAME", name))
    with pytest.raises(AssertionError):
        leak("--attack", "mine:attack")
    said = capsys.readouterr().err
    assert f"attack 'mine:attack' reports {name!r}, which is no column" in said
