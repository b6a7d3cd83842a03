"""Reading: whatever a study holds so far, and clear words about what is broken."""

import json
from pathlib import Path

import made_studies
import numpy as np
import pyarrow.parquet
import pytest

from kljax.metrics import COLUMNS
from kljax.studies import store
from kljax.studies.scoring import SCHEMA_VERSION

OLDER = Path(__file__).parents[1] / "goldens" / "version_4"
ONE = {"arm": {"none": {"arm": "none"}}, "seed": {"0": {"seed": 0}, "1": {"seed": 1}}}


def folder_with(tmp_path, *parts):
    """Makes a study of two cells, and parts (name, number of the cell, SSIMs)."""
    folder = made_studies.make_folder(tmp_path / "study", ONE, {"victims": 3})
    for name, number, ssim in parts:
        cell = cells_of(folder)[number]
        rows = made_studies.attack_rows(cell, ssim)
        made_studies.write_part(folder, name, cell, rows)
    return folder


def cells_of(folder):
    return json.loads((folder / "manifest.json").read_text())["cells"]


def test_every_column_of_a_row_has_a_type():
    schema = store.part_schema(["arm", "a b"])
    assert schema.names == ["cell", "axis_arm", "axis_a b", *COLUMNS]
    assert {str(schema.field(n).type) for n in schema.names[:3]} == {"string"}


def test_an_empty_study(tmp_path):
    study = store.read(folder_with(tmp_path))
    assert len(study.rows) == 0 and study.rows.schema.names[0] == "cell"
    assert study.failures == []
    assert [c["id"] for c in store.missing_cells(study)] == [
        c["id"] for c in study.manifest["cells"]
    ]


def test_a_partial_study(tmp_path):
    folder = folder_with(tmp_path, ("b", 0, [0.1, 0.2, 0.3]), ("a", 1, [0.4, 0.5]))
    first, second = cells_of(folder)
    made_studies.write_part(
        folder, "c", first, made_studies.floor_rows([0.5, 0.5, 0.5])
    )
    made_studies.write_failure(folder, second)
    study = store.read(folder)
    assert store.finished_victims(study) == {first["id"]: 3, second["id"]: 2}
    assert [cell["id"] for cell in store.missing_cells(study)] == [second["id"]]
    assert [failure["cell"] for failure in study.failures] == [second["id"]]
    # Floors are rows, and nobody's attack.
    assert len(study.rows) == 8


def test_rows_that_are_there_twice_count_once(tmp_path):
    folder = folder_with(tmp_path, ("a", 0, [0.1, 0.2]), ("b", 0, [0.9, 0.9, 0.3]))
    study = store.read(folder)
    assert study.rows["ssim"].to_pylist() == [0.1, 0.2, 0.3]


def test_rows_of_unknown_cells_are_left_out(tmp_path):
    folder = folder_with(tmp_path, ("a", 0, [0.1]))
    stranger = cells_of(folder)[0] | {"id": "0" * 12}
    rows = made_studies.attack_rows(stranger, [0.5])
    made_studies.write_part(folder, "b", stranger, rows)
    assert len(store.read(folder).rows) == 1


def test_work_in_hand_is_not_read(tmp_path):
    folder = folder_with(tmp_path, ("a", 0, [0.1]))
    (folder / "parts" / ".b.parquet").write_bytes(b"half a pa")
    (folder / "parts" / "c.parquet.corrupt").write_bytes(b"moved aside")
    (folder / "failures").mkdir()
    (folder / "failures" / ".x.json").write_text("{")
    study = store.read(folder)
    assert len(study.rows) == 1 and study.failures == []


def test_columns_that_came_later_are_null(tmp_path):
    folder = folder_with(tmp_path, ("a", 0, [0.1, 0.2]))
    path = folder / "parts" / "a.parquet"
    part = pyarrow.parquet.read_table(path)
    older = part.drop_columns(["live_channels"]).append_column(
        "gone", pyarrow.array([1, 2])
    )
    pyarrow.parquet.write_table(older, path)
    study = store.read(folder)
    assert study.rows["live_channels"].to_pylist() == [None, None]
    assert study.rows.schema.names == store.part_schema(ONE).names


def test_a_study_of_the_version_before_is_read():
    """Written by version 4 of the rows, from goldens/version_4/sweep.toml."""
    study = store.read(OLDER / "study")
    rows = study.rows.to_pylist()
    assert len(rows) == 2 * 2 * 2 * (6 + 1)  # cells, uploads, images, floors and arm
    assert {row["schema_version"] for row in rows} == {4}
    assert store.missing_cells(study) == []
    (part, _) = sorted((OLDER / "study" / "parts").iterdir())
    before = pyarrow.parquet.ParquetFile(part).read().to_pylist()
    for row, old in zip(rows, before, strict=False):
        old["secret_strategy"] = old.pop("lock_strategy")
        assert row.items() >= old.items()
        assert row.keys() - old.keys() >= {"label_rule", "init", "upload_kind"}
        assert all(row[name] is None for name in row.keys() - old.keys())


def test_a_study_of_a_newer_version_is_refused(tmp_path):
    folder = folder_with(tmp_path, ("a", 0, [0.1, 0.2]))
    path = folder / "parts" / "a.parquet"
    part = pyarrow.parquet.read_table(path)
    place = part.column_names.index("schema_version")
    newer = pyarrow.array([SCHEMA_VERSION + 1] * len(part), pyarrow.int32())
    part = part.set_column(place, "schema_version", newer)
    pyarrow.parquet.write_table(part, path)
    with pytest.raises(
        ValueError, match="a.parquet is of a newer kljax .*version 8.*7"
    ):
        store.read(folder)


def test_a_folder_named_like_a_column(tmp_path):
    folder = folder_with(tmp_path, ("a", 0, [0.1]))
    renamed = folder.rename(tmp_path / "ssim=7")
    assert store.read(renamed).rows["ssim"].to_pylist() == [0.1]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    (
        ("manifest.json", "{", "manifest.json is damaged at line 1, column 2"),
        ("manifest.json", '{"job": "train"}', "is not of a study"),
        (
            "manifest.json",
            '{"job": "sweep"}',
            "missing required field `schema_version`",
        ),
        (
            "manifest.json",
            '{"schema_version": 99, "job": "sweep", "axes": {}, "cells": []}',
            "of a newer kljax",
        ),
        ("parts/a.parquet", "PAR1", "a.parquet is damaged: it is no part of a study"),
        ("failures/x.json", "{", "x.json is damaged at line 1, column 2"),
    ),
)
def test_broken_files_are_named(tmp_path, file, content, message):
    folder = folder_with(tmp_path, ("a", 0, [0.1]))
    path = folder / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        store.read(folder)


def test_a_part_of_the_wrong_type_is_named(tmp_path):
    folder = folder_with(tmp_path, ("a", 0, [0.1]))
    path = folder / "parts" / "a.parquet"
    part = pyarrow.parquet.read_table(path)
    place = part.column_names.index("ssim")
    wrong = part.set_column(place, "ssim", pyarrow.array(["good"]))
    pyarrow.parquet.write_table(wrong, path)
    with pytest.raises(ValueError, match="a.parquet is damaged: it is no part"):
        store.read(folder)


def test_no_study_at_all(tmp_path):
    with pytest.raises(FileNotFoundError, match="no manifest.json"):
        store.read(tmp_path)


def test_reconstructions(tmp_path):
    folder = folder_with(tmp_path, ("a", 0, [0.1, 0.2, 0.3]))
    cell = cells_of(folder)[0]
    study = store.read(folder)
    assert store.read_reconstructions(study, cell["id"]) is None
    rows = made_studies.attack_rows(cell, [0.1, 0.2], mse=0.01)
    made_studies.write_reconstructions(folder, cell, rows)
    found = store.read_reconstructions(study, cell["id"])
    assert found["images"].shape == found["truths"].shape == (2, 1, 16, 16, 3)
    np.testing.assert_array_equal(found["victim"], [0, 1])
    path = folder / "reconstructions" / f"{cell['id']}.npz"
    content = path.read_bytes()
    flat = {name: found[name].reshape(2, -1) for name in ("images", "truths")}
    wrong = ({"victim": np.arange(3)}, {"truths": found["truths"][:1]}, flat)
    for changes in wrong:
        np.savez(path, **found | changes)
        with pytest.raises(ValueError, match="arrays do not belong together"):
            store.read_reconstructions(study, cell["id"])
    path.write_bytes(content)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(
        ValueError, match=f"{cell['id']}.npz is damaged: it holds no arrays"
    ):
        store.read_reconstructions(study, cell["id"])


def test_reconstructions_of_sentences(tmp_path):
    folder = folder_with(tmp_path, ("a", 0, [0.1, 0.2]))
    cell = cells_of(folder)[0]["id"]
    truths = np.arange(16).reshape(2, 1, 8)
    (folder / "reconstructions").mkdir()
    path = folder / "reconstructions" / f"{cell}.npz"
    np.savez(path, images=truths[..., ::-1], truths=truths, victim=[5, 3])
    found = store.read_reconstructions(store.read(folder), cell)
    np.testing.assert_array_equal(found["images"], truths[..., ::-1])
    np.testing.assert_array_equal(found["truths"], truths)
