"""Running sweeps: what compiles together, and that nothing is lost."""

import dataclasses
import errno
import json
import random
import shlex
import signal
import subprocess
import time

import jax
import numpy as np
import pytest
import small_sweeps
from small_sweeps import (
    FILE,
    LAYOUT,
    command,
    only,
    parts,
    run,
    seed_1_raises,
    sweep_of,
)
from tiny_studies import close, made_up_device, pretended, tiny

from kljax import cli
from kljax.parallel import Layout
from kljax.studies import leakage, scoring, store
from kljax.studies.builder.victims import choose_victims, load_victim_data
from kljax.studies.config import LeakConfig
from kljax.studies.store import images, layouts
from kljax.studies.store.failures import (
    command_of,
    make_failure,
    read_failures,
    write_failure,
)
from kljax.studies.store.manifest import (
    cells_of,
    make_manifest,
    open_study,
    plan,
    read_manifest,
)
from kljax.studies.sweeps import computing, expand, parse_sweep, running
from kljax.studies.sweeps.estimate import estimate_sweep


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished study, and what was said of it."""
    folder = tmp_path_factory.mktemp("studies") / "whole"
    seen = []
    report = run(
        folder, sweep_of(options={"reconstructions": True}), on_chunk=seen.append
    )
    return folder, report, seen


@pytest.mark.slow
def test_cells_that_differ_in_data_share_their_compilations(whole):
    folder, report, seen = whole
    # No defence, and noise of any strength: attack, network and held of both.
    groups = plan(read_manifest(folder))
    assert [len(group.cells) for group in groups] == [4, 8]
    assert report.compilations == 2 * 3
    assert report.attacks == 12 * 5
    assert report.failed == ()
    assert seen[-1].victims == seen[-1].all_victims == 60
    assert seen[-1].cells == seen[-1].all_cells == 12


@pytest.mark.slow
def test_more_victims_seeds_and_step_sizes_compile_nothing_more(tmp_path):
    more = sweep_of(victims=11, axes={"seed": [0, 1, 2], "step_size": [0.1, 0.2, 0.3]})
    assert run(tmp_path / "more", more).compilations == 2 * 3


@pytest.mark.slow
def test_a_sweep_over_five_strengths_compiles_what_one_strength_does(tmp_path):
    asked = []

    def count(event, duration, **_):
        del duration
        asked[-1] += event == "/jax/core/compile/backend_compile_duration"

    def sweep_over(*bounds):
        arms = [f"norm-clipping={bound}" for bound in bounds]
        folder = tmp_path / str(len(asked))
        asked.append(0)
        return run(folder, sweep_of(axes={"arm": arms, "seed": [0]}, step_size=0.1))

    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        # What scores is compiled by the first, and stays.
        reports = [sweep_over(*own) for own in ((9,), (8,), (0.5, 1, 2, 3, 4))]
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    assert [report.attacks for report in reports] == [5, 5, 5 * 5]
    assert [report.compilations for report in reports] == [3, 3, 3]
    _, one, five = asked
    assert 0 < five <= one


@pytest.mark.slow
def test_a_cell_is_the_study_of_its_configuration(whole):
    folder, _, _ = whole
    rows = store.read(folder).rows.to_pylist()
    for cell in (cells_of(read_manifest(folder))[n] for n in (0, 5, 11)):
        with small_sweeps.quick():
            alone = scoring.score_rows(
                leakage.leak(dataclasses.replace(cell.config, layout=LAYOUT))
            )
        mine = [row for row in rows if row["cell"] == cell.id]
        assert len(mine) == len(alone)
        place = {(row["arm"], row["victim"]): row for row in mine}
        for row in alone:
            found = place[row["arm"], row["victim"]]
            for name, value in row.items():
                if isinstance(value, float):
                    assert found[name] == pytest.approx(value, rel=1e-4), name
                else:
                    assert found[name] == value, name
        for axis, at in cell.point.items():
            assert {row[f"axis_{axis}"] for row in mine} == {at}


@pytest.mark.slow
def test_networks_that_differ_by_attack_are_swept_side_by_side(tmp_path):
    """A malicious server's network is another program; its seeds still share one."""
    fixed = {"model": "dense", "image_size": 8, "steps": 4, "victims": 2, "examples": 4}
    axes = {"arm": ["none"], "attack": ["matching", "imprint"], "seed": [0, 1]}
    mixed = parse_sweep({"fixed": fixed, "axes": axes})
    folder = tmp_path / "mixed"
    assert run(folder, mixed).failed == ()
    manifest = read_manifest(folder)
    assert [len(group.cells) for group in plan(manifest)] == [2, 2]
    rows = store.read(folder).rows.to_pylist()
    for cell in cells_of(manifest):
        mine = [row for row in rows if row["cell"] == cell.id]
        found = [row["bins_read"] for row in mine if row["arm"] == cell.config.arms[0]]
        if cell.config.attack == "matching":
            assert found == [None] * 8
        else:
            with small_sweeps.quick():
                result = leakage.leak(dataclasses.replace(cell.config, layout=LAYOUT))
            read = result.arms[0].attacked.reconstruction.numbers["bins_read"]
            assert found == np.repeat(read, 4).tolist() and min(found) >= 2


@pytest.mark.slow
def test_batches_have_a_row_for_each_image_however_they_are_cut(tmp_path):
    axes = {"arm": ["none"], "seed": [0, 1], "step_size": [0.1]}
    keep = {"reconstructions": True}
    batches = sweep_of(victims=3, examples=2, axes=axes, options=keep)
    folder, seen = tmp_path / "batches", []
    report = run(folder, batches, part=2, on_chunk=seen.append)
    assert report.attacks == 6  # uploads, not images
    assert [done.attacks for done in seen] == [2, 2, 2]
    study = store.read(folder)
    assert set(store.finished_victims(study).values()) == {3}
    assert store.missing_cells(study) == []
    for cell in cells_of(study.manifest):
        dataset = load_victim_data(cell.config)
        victims, _ = choose_victims(cell.config, dataset)
        mine = [row for row in study.rows.to_pylist() if row["cell"] == cell.id]
        arms = {row["arm"] for row in mine}
        assert len(arms) == 7
        for arm in arms:
            found = [row for row in mine if row["arm"] == arm]
            assert [row["upload"] for row in found] == [0, 0, 1, 1, 2, 2]
            assert [row["example"] for row in found] == [0, 1] * 3
            for column, expected in (
                ("victim", victims.indices.ravel()),
                ("label", victims.labels.ravel()),
                ("group", np.repeat(victims.groups, 2)),
            ):
                assert [row[column] for row in found] == expected.tolist()
        kept = store.read_reconstructions(study, cell.id)
        assert kept["victim"].tolist() == victims.indices[:, 0].tolist()
    # What is lost is missing, and made again.
    whole = parts(folder)
    sorted((folder / "parts").iterdir())[1].unlink()
    left = store.read(folder)
    assert list(store.finished_victims(left).values()) == [2, 2]
    assert len(store.missing_cells(left)) == 2
    run(folder, batches, part=2)
    assert parts(folder) == whole


@pytest.mark.slow
def test_a_study_that_lost_parts_makes_them_again_bit_by_bit(whole, tmp_path):
    folder, _, _ = whole
    other = tmp_path / "again"
    run(other)
    assert parts(other) == parts(folder)
    lost = sorted((other / "parts").iterdir())[1::2]
    for path in lost:
        path.unlink()
    seen = []
    run(other, on_chunk=seen.append)
    assert [f"{done.chunk}.parquet" for done in seen] == [path.name for path in lost]
    assert parts(other) == parts(folder)
    run(other, on_chunk=pytest.fail)  # finished


@pytest.mark.slow
def test_a_corrupted_part_is_put_aside_and_made_again(whole, tmp_path):
    folder, _, _ = whole
    other = tmp_path / "torn"
    run(other)
    torn = sorted((other / "parts").iterdir())[0]
    content = torn.read_bytes()
    torn.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=torn.name):
        store.read(other)
    run(other)
    assert parts(other) == parts(folder)
    assert torn.with_name(f"{torn.name}.corrupt").exists()


def test_reconstructions_are_one_file_per_cell(whole):
    folder, _, _ = whole
    study = store.read(folder)
    for cell in study.manifest["cells"]:
        found = store.read_reconstructions(study, cell["id"])
        assert found["images"].shape == found["truths"].shape == (5, 1, 8, 8, 3)
        assert len(set(found["victim"].tolist())) == 5
    assert {p.suffix for p in (folder / "reconstructions").iterdir()} == {".npz"}


# --- failures ---------------------------------------------------------------------

ONE = {"arm": ["none"], "seed": [0, 1], "step_size": [0.1]}
BROKEN = {"attack": ["matching", "outside_package:breaking_attack"]}


@pytest.mark.slow
def test_a_cell_that_raises_is_recorded_and_stops_no_other(tmp_path):
    folder = tmp_path / "broken"
    report = run(folder, sweep_of(axes=BROKEN))
    failures = read_failures(folder)
    assert len(failures) == len(report.failed) == 12
    study = store.read(folder)
    missing = {cell["id"] for cell in store.missing_cells(study)}
    assert missing == {failure["cell"] for failure in failures}
    assert all("broke on purpose" in failure["error"] for failure in failures)
    assert "outside_package.py" in failures[0]["traceback"]
    assert "outside_package:breaking_attack" in failures[0]["command"]
    # They are not tried again unless that is asked for.
    run(folder, sweep_of(axes=BROKEN), on_chunk=pytest.fail)


@pytest.mark.parametrize(
    "changes",
    (
        {"arms": ("keylock+gaussian-noise=0.1/known",), "chained": True},
        {"arms": ("none",), "sites": ("layers/0", "fc"), "steps": 7, "init": 0.25},
        {"arms": ("none",), "threat": ("attacker_norm=eval",), "labels": "given"},
        {"arms": ("none",), "from_run": "runs/a b", "round": 3, "upload": "update"},
        {"arms": ("none",), "optimiser": "adam", "step_size": 0.5},
    ),
)
def test_the_command_of_a_failure_is_its_configuration(changes, monkeypatch):
    config, jobs = LeakConfig(**changes), []
    monkeypatch.setattr("kljax.cli.leak.run_leak", lambda job, _: jobs.append(job))
    words = shlex.split(command_of(config))
    assert words[0] == "kljax"
    assert cli.main(words[1:]) == 0
    for field in dataclasses.fields(LeakConfig):
        if field.name != "layout":  # the machine's affair
            assert getattr(jobs[0], field.name) == getattr(config, field.name), (
                field.name
            )


@pytest.mark.slow
def test_too_little_memory_is_a_failure_of_the_cell(tmp_path):
    report = run(tmp_path / "poor", memory=1000)
    assert len(report.failed) == 12
    failure = read_failures(tmp_path / "poor")[0]
    assert "MemoryError" in failure["error"] and "budget" in failure["error"]


@pytest.mark.slow
def test_chunks_are_sized_to_the_memory(tmp_path):
    chunks = {}
    for name, memory in (("rich", None), ("poor", 1.5e6)):
        folder = tmp_path / name
        report = run(folder, layout=Layout("chunked", 8), memory=memory)
        assert not report.failed
        (layout, *_) = sorted((folder / "layouts").iterdir())
        chunks[name] = json.loads(layout.read_text())["chunk"]
    assert chunks["rich"] == 8
    assert 1 <= chunks["poor"] < 8


def test_a_dataset_that_is_not_there_is_a_failure_of_its_cells(tmp_path):
    axes = {"data": ["mnist", "digits"], "seed": [0], "step_size": [0.1]}
    report = run(tmp_path / "study", sweep_of(axes=axes, data_dir=str(tmp_path)))
    assert len(report.failed) == 3
    for failure in read_failures(tmp_path / "study"):
        assert failure["point"]["data"] == "mnist"
        assert "tfds build mnist" in failure["error"]
    missing = store.missing_cells(store.read(tmp_path / "study"))
    assert {cell["point"]["data"] for cell in missing} == {"mnist"}


@pytest.mark.slow
def test_failed_cells_can_be_tried_again(tmp_path, monkeypatch):
    axes = {"seed": [0, 1], "step_size": [0.1]}
    sweep, folder = sweep_of(axes=axes), tmp_path / "study"
    seed_1_raises(monkeypatch, RuntimeError("a bad day"))
    assert len(run(folder, sweep).failed) == 3
    monkeypatch.undo()
    assert not run(folder, sweep).failed  # nothing was tried
    assert len(store.missing_cells(store.read(folder))) == 3
    assert run(folder, sweep, retry_failed=True).attacks
    assert read_failures(folder) == []
    assert not store.missing_cells(store.read(folder))
    run(tmp_path / "lucky", sweep)
    assert parts(folder) == parts(tmp_path / "lucky")


def test_what_is_finished_stays_when_another_cell_fails_on_a_second_try(
    tmp_path, monkeypatch
):
    """Two cells share a chunk: first one fails, and on the second try the other."""
    sweep = sweep_of(axes=ONE, victims=3, options={"reconstructions": True})
    folder = tmp_path / "study"
    first, second = expand(sweep).cells
    pictures = folder / "reconstructions"
    seed_1_raises(monkeypatch, RuntimeError("a bad day"))
    run(folder, sweep)
    before = parts(folder)["00-0000-00000.parquet"]
    assert set(before["cell"].to_pylist()) == {first.id}
    kept = (pictures / f"{first.id}.npz").read_bytes()
    monkeypatch.undo()

    def build(*args):
        raise RuntimeError("a worse day")

    monkeypatch.setattr(computing, "build_study", build)
    report = run(folder, sweep, retry_failed=True)
    assert report.failed == (second.id,)
    assert parts(folder)["00-0000-00000.parquet"] == before
    assert (pictures / f"{first.id}.npz").read_bytes() == kept
    monkeypatch.undo()
    # Neither is what is finished made again.
    assert run(folder, sweep, retry_failed=True).attacks == 3
    assert read_failures(folder) == []
    run(tmp_path / "lucky", sweep)
    assert parts(folder) == parts(tmp_path / "lucky")


def test_images_that_a_chunk_found_before_stay(tmp_path):
    """A cell whose other chunk is missing has its only images in the chunk's file."""
    shape = (3, 1, 8, 8, 3)
    found = {
        name: images.Images(0, np.full(shape, n), np.zeros(shape), np.arange(3))
        for n, name in enumerate(("a", "b"))
    }
    for name, some in found.items():
        images.write_images(tmp_path, "00-0000-00000", {name: some})
    path = tmp_path / "reconstructions" / ".chunks" / "00-0000-00000.npz"
    kept = images.read_arrays(path, remedy="")
    for n, name in enumerate(found):
        assert (kept[f"{name}/images"] == n).all()


def test_a_cell_that_cannot_be_scored_costs_the_attacks_of_no_other(
    tmp_path, monkeypatch
):
    score, mapped, calls = scoring.score, computing.map_victims, []

    def scoring_one(result, floors):
        if result.config.seed == 1:
            raise RuntimeError("no score")
        return score(result, floors)

    def counted(*args, **options):
        calls.append(args)
        return mapped(*args, **options)

    monkeypatch.setattr(scoring, "score", scoring_one)
    monkeypatch.setattr(computing, "map_victims", counted)
    report = run(tmp_path / "study", sweep_of(axes=ONE, victims=3))
    assert len(calls) == 1
    (failure,) = read_failures(tmp_path / "study")
    assert report.failed == (failure["cell"],) and "no score" in failure["error"]
    assert report.attacks == 3
    rows = store.read(tmp_path / "study").rows.to_pylist()
    assert {row["seed"] for row in rows} == {0}


@pytest.mark.parametrize(
    "changes",
    (
        # The same examples, in uploads of one and of two.
        ({"examples": 1, "victims": 4}, {"examples": 2, "victims": 2}),
        # A user's functions may give their datasets one name.
        ({"data": "outside_package:bright"}, {"data": "outside_package:dark"}),
    ),
)
def test_floors_are_shared_by_the_same_victims_alone(changes):
    floors = computing.FloorsKept()
    for change in changes:
        config = tiny(**{"victims": 4} | change)
        result = pretended(config, close)
        with small_sweeps.quick():
            assert floors.rows(result) == scoring.score(result)[0]


def test_what_cannot_be_read_is_a_failure_of_its_cells(tmp_path, monkeypatch):
    seed_1_raises(
        monkeypatch, PermissionError(13, "Permission denied", "/data/private")
    )
    report = run(tmp_path / "study", sweep_of(axes=ONE))
    (failure,) = read_failures(tmp_path / "study")
    assert report.attacks == 5 and report.failed == (failure["cell"],)
    assert "PermissionError" in failure["error"] and "private" in failure["error"]


def test_a_disk_that_is_full_is_no_failure_of_a_cell(tmp_path, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(layouts, "write_json", full)
    with pytest.raises(OSError, match="No space left on device.*layouts/00-0000.json"):
        run(tmp_path / "study", sweep_of(axes=ONE))
    assert read_failures(tmp_path / "study") == []
    monkeypatch.undo()
    assert not run(tmp_path / "study", sweep_of(axes=ONE)).failed


def test_killed_before_a_failure_is_on_record_the_chunk_is_run_again(
    tmp_path, monkeypatch
):
    sweep, folder = sweep_of(axes=ONE), tmp_path / "killed"

    def killed(folder, failure):
        raise KeyboardInterrupt

    seed_1_raises(monkeypatch, RuntimeError("a bad day"))
    run(tmp_path / "once", sweep)
    with monkeypatch.context() as patched:
        patched.setattr(running, "write_failure", killed)
        with pytest.raises(KeyboardInterrupt):
            run(folder, sweep)
    assert len(parts(folder)) == 1 and read_failures(folder) == []
    seen = []
    run(folder, sweep, on_chunk=seen.append)
    assert [done.chunk for done in seen] == ["00-0000-00000", "00-0000-00001"]
    assert len(read_failures(folder)) == 1
    assert parts(folder) == parts(tmp_path / "once")


def test_a_corrupted_part_of_a_failed_cell_is_put_aside(tmp_path, monkeypatch):
    sweep, folder = sweep_of(axes=ONE | {"seed": [0]}, victims=12), tmp_path / "study"
    run(folder, sweep, compute=only(0))
    (path,) = (folder / "parts").iterdir()
    path.write_bytes(path.read_bytes()[:100])
    (cell,) = expand(sweep).cells
    write_failure(folder, make_failure(cell, RuntimeError("a bad day")))
    run(folder, sweep, on_chunk=pytest.fail)  # a failed cell is not tried again
    assert store.read(folder).rows.num_rows == 0
    assert [p.name for p in (folder / "parts").iterdir()] == [f"{path.name}.corrupt"]


# --- the folder -------------------------------------------------------------------


@pytest.mark.slow
def test_a_sweep_that_adds_cells_extends_the_study(tmp_path):
    folder = tmp_path / "grown"
    run(folder)
    before = parts(folder)
    seen = []
    run(folder, sweep_of(axes={"seed": [0, 1, 2]}), on_chunk=seen.append)
    after = parts(folder)
    assert {name: after[name] for name in before} == before
    assert sum(done.attacks for done in seen) == 3 * 2 * 5
    assert not store.missing_cells(store.read(folder))


@pytest.mark.parametrize(
    ("sweep", "message"),
    (
        (sweep_of(steps=5), "steps 4 -> 5 in 12 cells"),
        (sweep_of(axes={"seed": [0]}), "seed=1.* is gone"),
        (sweep_of(options={"reconstructions": True}), "option reconstructions: False"),
    ),
)
def test_a_changed_sweep_is_refused_with_the_difference(sweep, message, tmp_path):
    folder = tmp_path / "study"
    open_study(folder, sweep_of(), expand(sweep_of()), part=8)
    manifest = (folder / "manifest.json").read_bytes()
    with pytest.raises(FileExistsError, match=message):
        run(folder, sweep)
    assert (folder / "manifest.json").read_bytes() == manifest
    with pytest.raises(FileExistsError, match="victims in a part: 8 there, 9 here"):
        run(folder, part=9)


def test_what_is_no_study_is_refused(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "diary.txt").write_text("dear diary")
    with pytest.raises(FileExistsError, match="no study of kljax sweep"):
        run(tmp_path / "notes")
    assert [p.name for p in (tmp_path / "notes").iterdir()] == ["diary.txt"]
    half = tmp_path / "half"
    half.mkdir()
    (half / "manifest.json").write_text('{"job": "swe')
    with pytest.raises(
        ValueError, match="manifest.json is damaged at line 1.*it is no JSON"
    ):
        run(half)
    # A manifest that was being written when the process died is hidden.
    (half / "manifest.json").rename(half / ".manifest.json")
    assert not run(half).failed


# --- kills and devices --------------------------------------------------------------


def kill(arguments, cache, folder, wanted, pause):
    """Starts a sweep, and kills it some time after so many parts are there.

    Returns:
      Whether it was still at work.
    """
    process = command(*arguments, "--out", folder, cache=cache)
    while len(parts_of(folder)) < wanted and process.poll() is None:
        time.sleep(0.002)
    time.sleep(pause)
    alive = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return alive


def finish(arguments, cache, folder):
    """Lets a sweep finish; the seconds that it takes."""
    start = time.perf_counter()
    process = command(*arguments, "--out", folder, cache=cache)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return time.perf_counter() - start


def parts_of(folder):
    return list((folder / "parts").glob("[!.]*.parquet"))


@pytest.mark.slow
@pytest.mark.parametrize("kills", (3, 20))
def test_a_sweep_that_is_killed_ends_with_the_same_rows(kills, tmp_path):
    file, cache, once = (tmp_path / name for name in ("file.toml", "cache", "once"))
    file.write_text(FILE)
    arguments = ("sweep", file, "--part", "8", "--no-report")
    took = finish(arguments, cache, once)
    chunks = len(parts_of(once))
    generator = random.Random(kills)
    folders, alive, midway = [tmp_path / "killed-0"], 0, 0
    for _ in range(kills):
        folder = folders[-1]
        have = len(parts_of(folder))
        wanted = generator.randint(have, chunks - 1)
        # While it starts and compiles, or close to the writing of a part.
        pause = generator.uniform(0, 0.5 * took if wanted == have else 0.2)
        alive += kill(arguments, cache, folder, wanted, pause)
        midway += 0 < len(parts_of(folder)) < chunks
        if len(parts_of(folder)) == chunks:  # too late: the next one is killed instead
            folders.append(tmp_path / f"killed-{len(folders)}")
    assert alive > kills / 2 and midway
    for folder in folders:
        finish(arguments, cache, folder)
        assert parts(folder) == parts(once)
        left = {path.name for path in (folder / "parts").iterdir()}
        assert left == {path.name for path in parts_of(once)}  # nothing half-written


@pytest.mark.slow
def test_eight_devices_give_the_same_rows(whole, tmp_path):
    file = tmp_path / "file.toml"
    file.write_text(FILE)
    process = command(
        *("sweep", file, "--out", tmp_path / "eight", "--part", "8", "--no-report"),
        *("--layout.kind", "sharded", "--layout.chunk", "1"),
        cache=tmp_path / "cache",
        devices=8,
    )
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    eight = store.read(tmp_path / "eight")
    assert eight.manifest["local_devices"] == 8
    for row, other in zip(
        eight.rows.to_pylist(), store.read(whole[0]).rows.to_pylist(), strict=True
    ):
        for name, value in row.items():
            if isinstance(value, float):
                assert value == pytest.approx(other[name], rel=1e-3, abs=1e-6), name
            else:
                assert value == other[name], name


@pytest.mark.slow
def test_a_full_disk_and_a_read_only_folder_are_errors(tmp_path):
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", tmp_path],
        capture_output=True,
    )
    if mounted.returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        with pytest.raises(OSError, match="No space left"):
            run(tmp_path / "study")
        for path in (tmp_path / "study").rglob("*.parquet"):
            assert path.name[0] != "."
        assert 0 < len(parts(tmp_path / "study")) < 8  # whole, as many as there are
        assert read_failures(tmp_path / "study") == []
        remount = ["mount", "-o", "remount,ro,size=160k", tmp_path]
        subprocess.run(remount, check=True)
        with pytest.raises(OSError, match="Read-only"):
            run(tmp_path / "study")
    finally:
        subprocess.run(["umount", tmp_path], check=True)


# --- the command line -------------------------------------------------------------


def test_a_sweep_and_its_report_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "few.toml").write_text(FILE)
    made_up_device(monkeypatch)
    layout = ["--layout.kind", "chunked", "--layout.chunk", "4"]
    with small_sweeps.quick():
        assert (
            cli.main(["sweep", "few.toml", *layout, "--dry-run", "--probe", "0"]) == 0
        )
        said = " ".join(capsys.readouterr().out.split())
        assert not (tmp_path / "runs").exists()
        assert "12 cells (0 excluded, 0 illegal" in said and "60 victims" in said
        assert "6 compilations in 2 groups; from a probe of 1 of them" in said
        assert "by the cost model about" in said and "for all 60 with" in said
        assert cli.main(["sweep", "few.toml", *layout]) == 0
        said = capsys.readouterr().out
    study = tmp_path / "runs" / "few"
    # In a file a line per chunk, with pace and what is left.
    assert "none, 0, 0.1 and 3 more: 20/60 victims" in said
    assert "60/60 victims, cells 12/12" in said and "ETA 0:00:00" in said
    assert "60 attacks, 6 compilations" in said
    assert (study / "report" / "report.html").exists()
    assert not store.missing_cells(store.read(study))
    with small_sweeps.quick():
        changed = FILE.replace("steps = 4", "steps = 5")
        (tmp_path / "few.toml").write_text(changed)
        assert cli.main(["sweep", "few.toml", *layout]) == 2
        assert "steps 4 -> 5 in 12 cells" in capsys.readouterr().err
        assert cli.main(["report", "runs/few", "--value", "sssim"]) == 2
        assert "ssim" in capsys.readouterr().err


@pytest.mark.parametrize("option", ("--coordinator=a:1", "--processes", "--process"))
def test_options_that_dealt_a_sweep_say_what_became_of_them(option, tmp_path, capsys):
    assert cli.main(["sweep", str(tmp_path / "few.toml"), option, "2"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith(f"kljax: {option.partition('=')[0]} is no option")
    assert "--ray shares a sweep" in said and "in kljax train it stays" in said


@pytest.mark.slow
@pytest.mark.parametrize("attack", ("imprint", "matching"))
def test_the_steps_of_a_closed_form_cost_nothing(attack):
    """And 5,000 times the steps of a search cost as much more."""
    fixed = {"model": "dense", "image_size": 8, "victims": 5, "attack": attack}
    took = []
    for steps in (4, 20_000):
        content = {"fixed": fixed | {"steps": steps}, "axes": {"arm": ["none"]}}
        swept = parse_sweep(content)
        with small_sweeps.quick():
            found = estimate_sweep(
                make_manifest("few", swept, expand(swept)), layout=LAYOUT
            )
        took.append(found.run_s)
    assert (took[1] > 100 * took[0]) == (attack == "matching")
