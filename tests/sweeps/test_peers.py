"""Several processes on one study: who may, and that none stands in another's way."""

import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from small import FILE, command, parts, run, seed_1_raises, sweep_of

from kljax.core.claims import claim_folder
from kljax.parallel import Layout
from kljax.parallel.processes import Place
from kljax.studies import store
from kljax.studies.store.failures import read_failures, write_failure
from kljax.studies.store.layouts import keep_layout, read_layout
from kljax.studies.store.manifest import open_study, plan, read_manifest
from kljax.studies.sweeps import expand, running

AXES = {"arm": ["none"], "seed": [0, 1], "step_size": [0.1]}
KEPT = {"reconstructions": True}


def at_once(count, work):
    """Does the same in many threads at the same moment; what it gives or raises."""
    ready, found = threading.Barrier(count), []

    def one(number):
        ready.wait()
        try:
            found.append(work(number))
        except Exception as error:
            found.append(error)

    threads = [threading.Thread(target=one, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


# --- claims -----------------------------------------------------------------------


def test_no_backend_is_asked_for_before_processes_have_met():
    """Or `jax.distributed` refuses: neither an import nor a command does that."""
    code = """
import jax, pathlib
def asked(*args):
    raise SystemExit("the backend was asked for")
jax.default_backend = jax.devices = jax.local_devices = asked
import kljax, kljax.cli.commands
from kljax.cli.sweep import Sweep
Sweep(file=pathlib.Path("file.toml"))
"""
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100
    )
    assert found.returncode == 0, found.stderr


def test_a_second_job_on_the_folder_is_refused(tmp_path):
    with claim_folder(tmp_path, 0, 2):
        with claim_folder(tmp_path, 1, 2):
            for place in ((0, 2), (0, 1), (1, 3)):
                with pytest.raises(FileExistsError, match="another job is at work"):
                    with claim_folder(tmp_path, *place):
                        pytest.fail("was let in")
    with claim_folder(tmp_path, 0, 1):
        pass


def test_peers_may_look_at_an_old_claim_at_the_same_time(tmp_path):
    for old in range(20):
        with claim_folder(tmp_path, old, 100):
            pass

    def claim(number):
        with claim_folder(tmp_path, number, 8):
            return number

    for _ in range(20):
        assert sorted(at_once(8, claim)) == list(range(8))


def test_whoever_is_refused_has_not_extended_the_study(tmp_path):
    file, folder = tmp_path / "file.toml", tmp_path / "study"
    open_study(folder, sweep_of(), expand(sweep_of()))
    file.write_text(FILE.replace("seed = [0, 1]", "seed = [0, 1, 2]"))
    before = (folder / "manifest.json").read_bytes()
    with claim_folder(folder, 0, 2):
        with pytest.raises(FileExistsError, match="another job is at work"):
            running.sweep(file, folder, place=Place(0, 1))
    assert (folder / "manifest.json").read_bytes() == before


# --- files that several write -----------------------------------------------------


def test_the_first_layout_counts_for_all(tmp_path):
    for number in range(10):
        name = f"00-{number:04d}"
        found = at_once(
            8, lambda n, name=name: keep_layout(tmp_path, name, Layout(chunk=n + 1))
        )
        assert set(found) == {read_layout(tmp_path, name)}


def test_one_cell_may_fail_in_all_processes_at_once(tmp_path):
    cell = expand(sweep_of()).cells[0]
    error = ValueError("broke " * 1000)
    for _ in range(10):
        assert at_once(8, lambda _: write_failure(tmp_path, cell, error)) == [None] * 8
        (record,) = read_failures(tmp_path)
        assert record["error"] == f"ValueError: {error}"


# --- shared work ------------------------------------------------------------------


def shared(folder, sweep, **options):
    """Runs a study as two processes do, one after the other."""
    return [run(folder, sweep, process=n, processes=2, **options) for n in (0, 1)]


def test_two_processes_make_what_one_makes(tmp_path):
    sweep = sweep_of(axes=AXES, victims=12, options=KEPT)
    run(tmp_path / "one", sweep)
    reports = shared(tmp_path / "two", sweep)
    assert [report.attacks for report in reports] == [16, 8]
    assert parts(tmp_path / "two") == parts(tmp_path / "one")
    names = [
        sorted(path.name for path in (tmp_path / run / "reconstructions").iterdir())
        for run in ("one", "two")
    ]
    assert names[0] == names[1] and len(names[0]) == 2


def test_a_failure_is_on_record_until_all_of_the_cell_is_there(tmp_path, monkeypatch):
    # 12 victims of either seed in parts of 8: the cell that fails is in two of them.
    sweep, folder = sweep_of(axes=AXES, victims=12), tmp_path / "study"
    seed_1_raises(monkeypatch, RuntimeError("a bad day"))
    shared(folder, sweep)
    (record,) = read_failures(folder)
    assert "RuntimeError: a bad day" in record["error"]
    monkeypatch.undo()
    shared(folder, sweep, on_chunk=pytest.fail)  # nothing is tried
    assert run(folder, sweep, process=0, processes=2, retry_failed=True).attacks
    assert read_failures(folder) == [record]
    assert run(folder, sweep, process=1, processes=2, retry_failed=True).attacks
    assert read_failures(folder) == []
    run(tmp_path / "lucky", sweep)
    assert parts(folder) == parts(tmp_path / "lucky")


def test_images_of_a_cell_that_failed_in_one_chunk_are_not_lost(tmp_path, monkeypatch):
    sweep = sweep_of(axes=AXES, victims=12, options=KEPT)
    folder = tmp_path / "study"
    good, bad = expand(sweep).cells
    run(folder, sweep, process=0, processes=2)  # chunks 0 and 2
    seed_1_raises(monkeypatch, RuntimeError("a bad day"))
    run(folder, sweep, process=1, processes=2)  # the end of one cell, half of the other
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


@pytest.mark.slow
def test_a_dead_peer_stops_nobody_and_is_made_up_for(tmp_path):
    folder, file = tmp_path / "shared", tmp_path / "file.toml"
    file.write_text(FILE)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["sweep", file, "--out", folder, "--part", "8", "--no-report"]
    arguments += ["--coordinator", f"127.0.0.1:{port}", "--processes", "2"]
    peers = [
        command(*arguments, "--process", n, cache=tmp_path / "cache") for n in (0, 1)
    ]
    # Process 0, which the other has met, dies as soon as the work begins.
    deadline = time.monotonic() + 120
    while not (folder / "manifest.json").exists():
        assert time.monotonic() < deadline and peers[0].poll() is None
        time.sleep(0.05)
    peers[0].send_signal(signal.SIGKILL)
    peers[0].communicate()
    output, _ = peers[1].communicate(timeout=300)
    assert peers[1].returncode == 0, output
    mine = set(parts(folder))
    chunks = [c.name for g in plan(read_manifest(folder)) for c in g.chunks]
    assert {f"{name}.parquet" for name in chunks[1::2]} <= mine
    # Alone, and with the two processes' claims gone, the rest is done.
    process = command(
        *("sweep", file, "--out", folder, "--part", "8", "--no-report"),
        cache=tmp_path / "cache",
    )
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    one = command(
        *("sweep", file, "--out", tmp_path / "alone", "--part", "8", "--no-report"),
        cache=tmp_path / "cache",
    )
    output, _ = one.communicate(timeout=300)
    assert one.returncode == 0, output
    assert parts(folder) == parts(tmp_path / "alone")
