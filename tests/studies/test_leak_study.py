"""The folder of a leakage study is a study: it is read, reported and gone on with."""

import errno

import numpy as np
import pytest
from test_report import FILES, write
from tiny_studies import finished, tiny

from kljax.core.folders import LeftOut
from kljax.studies import leak_study, reports, store
from kljax.studies.frames import read_rows
from kljax.studies.scoring import matched_images
from kljax.studies.sweeps import running

ARMS = tiny().arms


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "study"
    write(folder, *finished())
    return folder


@pytest.fixture(scope="module")
def study(folder):
    return store.read(folder)


def test_its_rows_are_those_of_the_study(study):
    _, rows = finished()
    read = study.rows.to_pylist()
    attacks = [row for row in rows if not row["arm"].startswith("floor/")]
    floors = [row for row in rows if row["arm"].startswith("floor/")]
    assert len(read) == len(attacks) + len(study.manifest["cells"]) * len(floors)
    there = {(row["arm"], row["upload"], row["example"]): row for row in read}
    for row in rows:
        twin = there[row["arm"], row["upload"], row["example"]]
        for name, value in row.items():
            np.testing.assert_equal(twin[name], value, name)
    assert store.missing_cells(study) == []


def test_its_frame_is_of_the_study_and_has_every_row_once(folder):
    _, rows = finished()
    frame = read_rows(folder)
    assert len(frame) == len(rows) and "cell" not in frame


def test_its_reconstructions_are_in_the_order_of_the_truths(study):
    result, _ = finished()
    for cell, arm in zip(study.manifest["cells"], result.arms, strict=True):
        kept = store.read_reconstructions(study, cell["id"])
        np.testing.assert_array_equal(kept["images"], matched_images(arm, result))
        np.testing.assert_array_equal(kept["truths"], result.victims.inputs)


def test_a_report_shows_every_arm(folder, study):
    page = reports.write_report(study).read_text(encoding="utf-8")
    for cell in study.manifest["cells"]:
        assert cell["point"]["arm"] in page
    assert page.count('alt="Reconstruction of victim') >= len(study.manifest["cells"])


@pytest.mark.slow
def test_its_sweep_file_finds_nothing_left_to_do(folder, study):
    reports.write_report(study)
    done = running.sweep(folder / "report" / "sweep.toml", folder)
    assert done.attacks == 0 and done.compilations == 0


def test_what_cannot_be_written_leaves_no_half_of_a_study(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left")

    monkeypatch.setattr(leak_study, "write_json", full)
    with pytest.warns(LeftOut, match="kljax report reads is left out: .*No space left"):
        write(tmp_path / "run", *finished())
    there = {path.name for path in (tmp_path / "run").iterdir()}
    assert there == FILES - {"manifest.json", "parts", "reconstructions"}
