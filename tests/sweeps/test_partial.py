"""Studies of which some is there: who may go on, and what is kept until all is."""

import pytest
from small_sweeps import FILE, only, parts, run, seed_1_raises, sweep_of

from kljax.core.claims import claim_folder
from kljax.studies import store
from kljax.studies.store.failures import read_failures
from kljax.studies.store.manifest import open_study
from kljax.studies.sweeps import expand, running

AXES = {"arm": ["none"], "seed": [0, 1], "step_size": [0.1]}
KEPT = {"reconstructions": True}


def test_whoever_is_refused_has_not_extended_the_study(tmp_path):
    file, folder = tmp_path / "file.toml", tmp_path / "study"
    open_study(folder, sweep_of(), expand(sweep_of()))
    file.write_text(FILE.replace("seed = [0, 1]", "seed = [0, 1, 2]"))
    before = (folder / "manifest.json").read_bytes()
    with claim_folder(folder):
        with pytest.raises(FileExistsError, match="another job is at work"):
            running.sweep(file, folder)
    assert (folder / "manifest.json").read_bytes() == before


@pytest.mark.slow
def test_the_order_of_chunks_is_no_matter(tmp_path):
    sweep = sweep_of(axes=AXES, victims=12, options=KEPT)
    run(tmp_path / "one", sweep)
    assert run(tmp_path / "two", sweep, compute=only(2, 0)).attacks == 16
    assert run(tmp_path / "two", sweep).attacks == 8
    assert parts(tmp_path / "two") == parts(tmp_path / "one")
    names = [
        sorted(path.name for path in (tmp_path / run / "reconstructions").iterdir())
        for run in ("one", "two")
    ]
    assert names[0] == names[1] and len(names[0]) == 2


@pytest.mark.slow
def test_a_failure_is_on_record_until_all_of_the_cell_is_there(tmp_path, monkeypatch):
    # 12 victims of either seed in parts of 8: the cell that fails is in two of them.
    sweep, folder = sweep_of(axes=AXES, victims=12), tmp_path / "study"
    seed_1_raises(monkeypatch, RuntimeError("a bad day"))
    run(folder, sweep)
    (record,) = read_failures(folder)
    assert "RuntimeError: a bad day" in record["error"]
    monkeypatch.undo()
    run(folder, sweep, on_chunk=pytest.fail)  # nothing is tried
    assert run(folder, sweep, retry_failed=True, compute=only(1)).attacks
    assert read_failures(folder) == [record]
    assert run(folder, sweep, retry_failed=True).attacks
    assert read_failures(folder) == []
    run(tmp_path / "lucky", sweep)
    assert parts(folder) == parts(tmp_path / "lucky")


@pytest.mark.slow
def test_images_of_a_cell_that_failed_in_one_chunk_are_not_lost(tmp_path, monkeypatch):
    sweep = sweep_of(axes=AXES, victims=12, options=KEPT)
    folder = tmp_path / "study"
    good, bad = expand(sweep).cells
    run(folder, sweep, compute=only(0, 2))
    seed_1_raises(monkeypatch, RuntimeError("a bad day"))
    run(folder, sweep)  # the end of one cell, half of the other
    study = store.read(folder)
    assert len(store.read_reconstructions(study, good.id)["victim"]) == 12
    assert store.read_reconstructions(study, bad.id) is None
    monkeypatch.undo()
    assert run(folder, sweep, retry_failed=True).attacks == 4  # of that cell alone
    found = store.read_reconstructions(study, bad.id)
    rows = store.read(folder).rows.to_pylist()
    assert found["victim"].tolist() == [
        row["victim"] for row in rows if (row["cell"], row["arm"]) == (bad.id, "none")
    ]
    assert {path.suffix for path in (folder / "reconstructions").iterdir()} == {".npz"}
