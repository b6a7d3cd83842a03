"""Files that are read back and are not what was written: one error, and no loss."""

import contextlib
import dataclasses
import random
import shutil
from pathlib import Path

import numpy as np
import orbax.checkpoint
import pytest
import small_sweeps
from tiny_studies import quick_compilation

from kljax import cli
from kljax.core.files import DamagedFile
from kljax.core.folders import LeftOut
from kljax.federated import checkpoints
from kljax.parallel import Layout
from kljax.studies import run_folder, store
from kljax.studies.builder import run_setup
from kljax.studies.config import TrainConfig
from kljax.studies.reports import write_report
from kljax.studies.store.failures import make_failure, write_failure
from kljax.studies.store.manifest import cells_of, plan, read_manifest
from kljax.studies.store.merging import merge_studies
from kljax.studies.store.parts import pieces_in, read_part
from kljax.studies.sweeps import computing, running
from kljax.studies.training import train

# Orbax leaves its own tasks behind where it fails.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)

RUN = TrainConfig(
    model="dense",
    image_size=8,
    examples=60,
    test_examples=20,
    public_examples=0,
    batch=8,
    rounds=2,
    save_every=1,
    keep_rounds=(1,),
    private_key_size=16,
    arms=("none",),
    layout=Layout("loop"),
)
SWEEP = """
[fixed]
model = "dense"
image_size = 8
victims = 3
steps = 2
private_key_size = 16
optimiser = "adam"
arm = "none"

[axes]
seed = [0, 1]

[options]
reconstructions = true
"""


def flipped(content, seed=0):
    """Flips a bit of a byte drawn at random."""
    if not content:
        return b"\xff"
    generator = random.Random(f"{seed} {len(content)}")
    place = generator.randrange(len(content))
    changed = bytearray(content)
    changed[place] ^= 1 << generator.randrange(8)
    return bytes(changed)


def in_utf_16(content):
    return content.decode("latin-1").encode("utf-16")


DAMAGES = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "list": lambda content: b"[]",
    "null": lambda content: b"null",
    "flipped": flipped,
    "UTF-16": in_utf_16,
}


def contents(folder):
    """Reads all files, hidden locks aside, by their path in the folder."""
    return {
        path.relative_to(folder): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def survives(folder, file, damage, commands):
    """Damages a file, runs commands, and checks that nothing else is lost.

    Each command either does its work or raises what ends in one line. Afterwards the
    folder is as it was.

    Returns:
      What was raised.
    """
    before = contents(folder)
    (folder / file).write_bytes(damage(before[file]))
    raised = []
    for command in commands:
        try:
            command()
        except (ValueError, OSError) as error:
            assert cli.commands._refusal(error)[1] is not None, error
            assert "\n" not in str(error).strip()
            raised.append(error)
        after = contents(folder)
        lost = {
            name
            for name, content in before.items()
            # The record of a failure that was made good is removed.
            if name != file
            and name.parts[0] != "failures"
            and after.get(name) != content
        }
        assert not lost, (file, command, raised)
    shutil.rmtree(folder)
    for name, content in before.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return raised


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished training."""
    folder = tmp_path_factory.mktemp("damaged") / "run"
    with quick_compilation():
        train(RUN, folder)
    return folder


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A finished study with a failure on record, beside its sweep file and its twin."""
    place = tmp_path_factory.mktemp("damaged")
    (place / "sweep.toml").write_text(SWEEP)
    with small_sweeps.quick():
        running.sweep(
            place / "sweep.toml", place / "study", part=4, layout=small_sweeps.LAYOUT
        )
    shutil.copytree(place / "study", place / "other")
    cell = cells_of(read_manifest(place / "study"))[0]
    write_failure(place / "study", make_failure(cell, ValueError("a bad day")))
    return place / "study"


def reads_of_run(folder):
    """Makes what reads a run again: to go on with it, attack it or report it."""
    setup = run_setup.build_run_setup(RUN)
    rounds = run_setup.arm_rounds(setup, "none").rounds
    server, clients = run_setup.start(setup, rounds)

    def go_on():
        run_folder.check_same(folder, RUN)
        run_folder.read_summary(folder)
        run_folder.check_rows(folder, run_folder.read_rows(folder), "none", RUN.rounds)
        run_folder.read_accuracy(folder / "none")
        for number in (*RUN.keep_rounds, RUN.rounds):
            checkpoints.restore(folder / "none", number, server, clients)

    return go_on, lambda: run_folder.read_config(folder)


def reads_of_study(folder, monkeypatch):
    """Makes what reads a study again: to go on with it, report it or merge it."""

    def nothing(runner, pieces, failed):
        return computing.Computed({}, {}, computing.NO_TIME, {})

    monkeypatch.setattr(computing.GroupRunner, "run", nothing)

    def go_on():
        running.sweep(folder.parent / "sweep.toml", folder, layout=small_sweeps.LAYOUT)

    def report():
        study = store.read(folder)
        for cell in study.manifest["cells"]:
            store.read_reconstructions(study, cell["id"])
        for group in plan(study.manifest):
            running.read_layout(folder, group.name)

    def merge():
        out = folder.parent / "merged"
        try:
            merge_studies(folder, folder.parent / "other", out)
        finally:
            shutil.rmtree(out, ignore_errors=True)

    # Going on comes last: it may put a part aside, or forget a failure made good.
    return report, merge, go_on


# Of these nothing is read, or nothing but that they are there.
UNREAD = (
    ".png",
    ".md",
    "_CHECKPOINT_METADATA",
    "commit_success.txt",
    "array_metadatas",
)


def must_be_read(file):
    """Tells whether a file that is empty, or holds a list, cannot pass for itself."""
    name = str(file)
    return not any(end in name for end in UNREAD) and "process_0/" not in name


def damage_all(folder, files, reads, damages):
    for file in files:
        for name, damage in damages.items():
            raised = survives(folder, file, damage, reads)
            if must_be_read(file) and "flipped" not in name:
                kinds = {type(error) for error in raised}
                assert DamagedFile in kinds, (file, name, raised)


def of_one_round(folder):
    """Lists the files of a run, but of one state only, and not of all its arrays."""
    files = [f for f in contents(folder) if "ocdbt.process_0" not in f.parts]
    keep = [f for f in files if f.parts[0] != "none" or f.parts[:3] == LAST]
    return [f for f in keep if "d" not in f.parts[:-1]] + [
        f for f in keep if "d" in f.parts[:-1]
    ][:2]


LAST = ("none", "server", str(RUN.rounds))


@pytest.mark.slow
def test_files_of_a_run_that_are_damaged(run):
    with quick_compilation():
        damage_all(run, of_one_round(run), reads_of_run(run), DAMAGES)


@pytest.mark.slow
def test_files_of_a_study_that_are_damaged(study, monkeypatch):
    reads = reads_of_study(study, monkeypatch)
    # Of files that are alike one is enough.
    kinds = {(f.parent, f.suffix): f for f in contents(study)}
    damage_all(study, kinds.values(), reads, DAMAGES)


@pytest.mark.slow
def test_every_file_of_a_run_is_damaged_in_many_ways(run):
    damages = DAMAGES | {
        f"flipped {n}": lambda content, n=n: flipped(content, n) for n in range(1, 20)
    }
    with quick_compilation():
        damage_all(run, contents(run), reads_of_run(run), damages)


@pytest.mark.slow
def test_every_file_of_a_study_is_damaged_in_many_ways(study, monkeypatch):
    damages = DAMAGES | {
        f"flipped {n}": lambda content, n=n: flipped(content, n) for n in range(1, 20)
    }
    reads = reads_of_study(study, monkeypatch)
    damage_all(study, contents(study), reads, damages)


def test_a_flipped_bit_of_a_part_changes_no_row(study):
    """Without checksums a bit in a page is another score."""
    axes = read_manifest(study)["axes"]
    path = sorted((study / "parts").iterdir())[0]
    whole, content = read_part(path, axes), path.read_bytes()
    found = 0
    try:
        for seed in range(300):
            path.write_bytes(flipped(content, seed))
            with contextlib.suppress(DamagedFile):
                # As text, where NaN is NaN.
                rows = read_part(path, axes).rows.to_pylist()
                assert str(rows) == str(whole.rows.to_pylist())
                continue
            found += 1
    finally:
        path.write_bytes(content)
    assert found > 100


def test_a_flipped_bit_of_a_state_changes_no_number(tmp_path):
    """Not everything on the disk is under a checksum of the library's."""
    tree = {"public/a": np.arange(1000, dtype=np.float32)}
    checkpoints._write(tmp_path / "1", tree)
    arrays = checkpoints._arrays(tmp_path / "1")
    assert arrays.keys() == tree.keys()
    with pytest.MonkeyPatch.context() as patch:
        restore = orbax.checkpoint.Checkpointer.restore

        def changed(self, path):
            arrays = restore(self, path)
            arrays["public/a"] = arrays["public/a"].copy()
            arrays["public/a"][7] += 1
            return arrays

        patch.setattr(orbax.checkpoint.Checkpointer, "restore", changed)
        with pytest.raises(DamagedFile, match="not those that were written"):
            checkpoints._arrays(tmp_path / "1")


def test_a_damaged_state_costs_no_older_one(run, tmp_path):
    """A training that goes on reads its last state before it removes others."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    for name in ("summary.json", "none/accuracy.json"):
        (folder / name).unlink()
    arm = folder / "none"
    damaged = arm / "server" / str(RUN.rounds)
    (damaged / "_METADATA").write_bytes(b"")
    before = contents(folder)
    with quick_compilation():
        with pytest.raises(DamagedFile, match=f"{damaged} is damaged.*or remove it"):
            train(RUN, folder)
        assert {name: contents(folder)[name] for name in before} == before
        # As the error says.
        shutil.rmtree(damaged)
        seen = []
        train(RUN, folder, on_round=seen.append)
    assert [row["round"] for row in seen] == [1]


def test_a_finished_run_without_its_metrics_is_summarised(run, tmp_path):
    """As the error about them says: what they had is lost, and nothing else."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    for name in ("summary.json", "metrics.csv"):
        (folder / name).unlink()
    with quick_compilation(), pytest.warns(LeftOut, match="metrics.csv is lost"):
        summary = train(RUN, folder).summary
    whole = run_folder.read_summary(run)
    assert run_folder.read_summary(folder)["accuracy"] == whole["accuracy"]
    assert summary["throughput"]["clients_per_s"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    (
        (lambda lines: lines[:1] + lines[2:], "lacks rows of the 2 rounds"),
        (lambda lines: [], "at line 1: it lacks schema_version, arm"),
        (lambda lines: [lines[0].replace("loss", "lost")], "unknown column 'lost'"),
        (lambda lines: [*lines[:2], lines[2][:9]], "at line 3: it has . of 11 fields"),
        (lambda lines: [lines[0], lines[1].replace("none", "none,")], "line 2: it has"),
        (lambda lines: [lines[0], "1,none,0,x,,,,,,,"], "at line 2: loss is 'x'"),
        (lambda lines: [lines[0], "1,none,,1,,,,,,,"], "at line 2: round is ''"),
    ),
)
def test_metrics_that_are_damaged_say_where(run, tmp_path, change, message):
    lines = (run / "metrics.csv").read_text().splitlines()
    (tmp_path / "metrics.csv").write_text("\n".join(change(lines)))
    with pytest.raises(DamagedFile, match=message):
        rows = run_folder.read_rows(tmp_path)
        run_folder.check_rows(tmp_path, rows, "none", RUN.rounds)


def test_an_option_of_another_version_is_no_default(run, tmp_path):
    config = (run / "config.json").read_text()
    path = tmp_path / "config.json"
    path.write_text(config.replace('"rounds"', '"roundz"'))
    with pytest.raises(ValueError, match="config.json: unknown option 'roundz'"):
        run_folder.read_config(tmp_path)
    assert run_folder.read_config(tmp_path, newer_ok=True).rounds == 20


@pytest.mark.parametrize(
    ("old", "new", "place"),
    (
        ('"part": 4', '"part": 0', "part"),
        ('"generation": 0', '"generation": null', r"cells\[0\].generation"),
        ('"victims": 3', '"victims": "3"', "sweep.fixed|cells"),
        ('"seed": "0"', '"seed": "9"', r"cells\[0\].point"),
        ('"axes": {', '"axes": {"more": {},', "axes"),
    ),
)
def test_a_manifest_that_contradicts_itself(study, tmp_path, old, new, place):
    text = (study / "manifest.json").read_text()
    assert old in text
    (tmp_path / "manifest.json").write_text(text.replace(old, new))
    with pytest.raises(DamagedFile, match=f"damaged at ({place})"):
        read_manifest(tmp_path)


def test_a_cell_that_cannot_be_is_named_with_its_folder(tmp_path):
    older = Path(__file__).parents[1] / "goldens" / "version_4" / "study"
    manifest = read_manifest(older)
    manifest["cells"][0]["config"]["attac"] = "dlg"
    words = rf"{tmp_path}/manifest.json is damaged at cell \w+: .*no field 'attac'"
    for read in (cells_of, plan):
        with pytest.raises(DamagedFile, match=words):
            read(manifest, tmp_path)


NO_TEXT = "a\udcff"  # as a path with a byte that is not UTF-8 comes from the system


def test_a_name_that_is_no_text_is_refused_before_anything_is_made(study, tmp_path):
    name = tmp_path / NO_TEXT
    for make in (
        lambda: train(RUN, name),
        lambda: running.sweep(study.parent / "sweep.toml", name),
        lambda: merge_studies(study, study.parent / "other", name),
        lambda: write_report(store.read(study), name),
    ):
        with pytest.raises(ValueError, match="is no text in UTF-8"):
            make()
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_too_long_is_refused_before_the_first_round(tmp_path):
    arms = ("none", "gaussian-noise=0." + "1" * 300)
    config = dataclasses.replace(RUN, arms=arms)
    with quick_compilation(), pytest.raises(OSError, match="File name too long"):
        train(config, tmp_path / "run", on_round=pytest.fail)
    for make in (
        lambda: train(RUN, tmp_path / ("x" * 300)),
        lambda: running.sweep(tmp_path / "sweep.toml", tmp_path / ("x" * 300)),
    ):
        (tmp_path / "sweep.toml").write_text(SWEEP)
        with pytest.raises(OSError, match="File name too long"):
            make()


def test_a_study_in_a_folder_that_is_no_text_is_read(study, tmp_path):
    """As old ones may be: nothing is put aside that is sound."""
    folder = tmp_path / NO_TEXT
    shutil.copytree(study, folder)
    before = contents(folder)
    axes = read_manifest(folder)["axes"]
    for path in sorted((folder / "parts").iterdir()):
        assert pieces_in(folder, path.stem, axes)
    assert contents(folder) == before
