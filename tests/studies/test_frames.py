"""Data frames: what the rows say, in the type that their column has."""

import csv
import json
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pandas
import pytest
from tiny_studies import close, finished, pretended, scored, tiny

import kljax
from kljax import metrics
from kljax.metrics import COLUMNS, OUTCOMES, RUN_COLUMNS
from kljax.studies import frames, leak_report, leak_summary, run_folder
from kljax.studies.scoring import SCHEMA_VERSION

OLDER = Path(__file__).parents[1] / "goldens" / "version_4"
DTYPES = {
    "string": "category",
    "int32": "Int32",
    "int64": "Int64",
    "bool": "boolean",
    "float64": "float64",
}


@metrics.metric("brightest pixel", leaks=0)
def brightest(guess, truth):
    return guess.max()


@pytest.fixture
def without_lpips(monkeypatch):
    monkeypatch.setattr(metrics, "lpips_available", lambda: False)


@pytest.fixture
def result(monkeypatch, without_lpips):
    """A study of two uploads of two images, with a metric of its own."""
    module = types.ModuleType("mine")
    module.brightest = brightest
    monkeypatch.setitem(sys.modules, "mine", module)
    config = tiny(
        examples=2,
        victims=2,
        arms=("none", "keylock/known"),
        metrics=("mine:brightest",),
    )
    return pretended(config, close, loss_at_truth=np.array([np.nan, 0.5]))


def check(frame, rows, columns):
    """Checks that a frame says what rows say, and in their columns' types."""
    assert len(frame) == len(rows)
    for name, column in columns.items():
        assert str(frame[name].dtype) == DTYPES[column.dtype], name
        for found, row in zip(frame[name], rows, strict=True):
            if row[name] is None or row[name] != row[name]:
                assert pandas.isna(found), name
            else:
                assert found == row[name], name


def test_a_result_becomes_a_frame(result):
    rows, frame = scored(result), result.to_frame()
    columns = COLUMNS | {"brightest": brightest.column}
    assert list(frame.columns) == list(columns)
    check(frame, rows, columns)
    assert list(frame["outcome"].cat.categories) == list(OUTCOMES)
    assert list(frame["arm"].cat.categories)[-2:] == ["none", "keylock/known"]
    assert frame["live_channels"].isna().any() and frame["group"].notna().all()
    pandas.testing.assert_frame_equal(kljax.rows_frame(result), frame)


def test_a_folder_of_leak_reads_as_what_was_written(result, tmp_path):
    rows = scored(result)
    summary = leak_summary.summarise(result, rows)
    leak_report.write_run(tmp_path / "run", result, rows, summary)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    frame = kljax.read_rows(tmp_path / "run")
    pandas.testing.assert_frame_equal(frame, result.to_frame(), check_exact=True)
    # Read, and no more.
    assert before == {path: path.read_bytes() for path in files}
    # Means by arm, without a loop: those of the summary.
    means = frame.groupby("arm", observed=True)[["ssim", "brightest"]].mean()
    for name in ("none", "keylock/known"):
        for column in means:
            mean = summary["arms"][name][column]
            assert means.loc[name, column] == pytest.approx(mean, rel=1e-12)


def test_a_folder_of_the_version_before_is_read():
    with open(OLDER / "leak" / "rows.csv", newline="") as file:
        old = list(csv.DictReader(file))
    frame = kljax.read_rows(OLDER / "leak")
    assert list(frame.columns) == list(COLUMNS) and len(frame) == len(old) == 16
    new = COLUMNS.keys() - old[0].keys() - {"secret_strategy"}
    plans = ["" if pandas.isna(x) else x for x in frame["secret_strategy"]]
    assert plans == [row["lock_strategy"] for row in old]
    assert set(plans) == {"", "unit", "known"}
    assert {"label_rule", "init", "upload_kind"} <= new
    assert frame[list(new)].isna().all(axis=None)
    for name in ("ssim", "psnr", "matching_loss"):
        written = [float(row[name] or "nan") for row in old]
        np.testing.assert_array_equal(frame[name], written)
    assert frame["success"].sum() == sum(row["success"] == "True" for row in old)
    assert set(frame["schema_version"]) == {4}


def test_a_folder_of_a_sweep_is_read(tmp_path):
    shutil.copytree(OLDER / "study", tmp_path / "study")
    frame = kljax.read_rows(tmp_path / "study")
    study = kljax.store.read(OLDER / "study")
    check(frame, study.rows.to_pylist(), COLUMNS)
    assert list(frame["axis_arm"].cat.categories) == ["none", "known"]
    cells = [cell["id"] for cell in study.manifest["cells"]]
    assert list(frame["cell"].cat.categories) == cells
    attacked = frame[~frame["arm"].astype(str).str.startswith("floor/")]
    table = attacked.pivot_table("ssim", "axis_arm", "upload", observed=True)
    assert table.shape == (2, 2) and table.notna().all(axis=None)


def test_rows_of_a_training_are_read(tmp_path):
    rows = [
        {
            "schema_version": run_folder.SCHEMA_VERSION,
            "arm": arm,
            "round": n,
            "loss": 0.1 + n,
            "train_accuracy": 0.5,
            "test_accuracy": None if n else 0.25,
            "attack_success": None,
            "epsilon": None if n else 1.5,
            "clients": 2,
            "examples": 32,
            "excluded": (3, 4) if n else (),
            "compile_s": 1.0,
            "run_s": 2.0,
        }
        for arm in ("none", "keylock")
        for n in range(2)
    ]
    run_folder.write_rows(tmp_path, rows)
    frame = kljax.read_rows(tmp_path)
    texts = [row | {"excluded": " ".join(map(str, row["excluded"]))} for row in rows]
    check(frame, texts, RUN_COLUMNS)
    assert list(frame["excluded"]) == ["", "3 4"] * 2


def test_whole_numbers_of_any_size_stay_exact():
    columns = {"seed": COLUMNS["seed"], "victim": COLUMNS["victim"]}
    rows = [{"seed": 2**62 + 1, "victim": None}, {"seed": 1, "victim": 2**53 + 1}]
    frame = frames.make_frame(rows, columns)
    assert frame["seed"].tolist() == [2**62 + 1, 1]
    assert frame["victim"][1] == 2**53 + 1 and frame["victim"][0] is pandas.NA


def copied(tmp_path):
    return Path(shutil.copytree(OLDER / "leak", tmp_path / "leak"))


@pytest.mark.parametrize(
    ("file", "change", "message"),
    (
        ("rows.csv", lambda text: text.replace("arm,", "arn,"), "no column 'arm'"),
        (
            "rows.csv",
            lambda text: text.replace(",0,0,", ",0,x,"),
            "rows.csv is damaged",
        ),
        ("rows.csv", lambda text: text[:2000] + '"', "rows.csv is damaged"),
        ("rows.csv", lambda text: "", "rows.csv is damaged"),
        ("config.json", lambda text: text[:50], "config.json is damaged at line"),
        (
            "config.json",
            lambda text: json.dumps(json.loads(text) | {"own_columns": [{}]}),
            "config.json is damaged: its own_columns are none",
        ),
    ),
)
def test_a_damaged_folder_is_named(tmp_path, file, change, message):
    path = copied(tmp_path) / file
    path.write_text(change(path.read_text()))
    with pytest.raises(ValueError, match=message):
        kljax.read_rows(tmp_path / "leak")


def test_rows_of_a_newer_version_are_refused(tmp_path):
    path = copied(tmp_path) / "rows.csv"
    newer = SCHEMA_VERSION + 1
    path.write_text(path.read_text().replace("\n4,", f"\n{newer},"))
    with pytest.raises(ValueError, match=f"newer kljax .rows of version {newer}"):
        kljax.read_rows(tmp_path / "leak")


def test_a_folder_without_rows_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no rows: it has no rows.csv"):
        kljax.read_rows(tmp_path)


@pytest.mark.slow
def test_a_real_study_has_no_surprises():
    result, rows = finished()
    check(frames.make_frame(rows, COLUMNS), rows, COLUMNS)
