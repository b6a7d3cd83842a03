"""Sweeps on Ray: rows of one process, whoever computes, and nothing lost."""

import os
import signal
import subprocess
import sys
import time

import pytest
from search_path import TESTS
from small_sweeps import parts

from kljax import cli
from kljax.studies import store
from kljax.studies.store.failures import read_failures
from kljax.studies.sweeps import on_ray, ray_worker, running
from kljax.studies.sweeps.computing import Limits

# A cluster's processes begin as forks of this one, which JAX warns of; they run no JAX.
pytestmark = pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")

MINE = '''
"""A user's own metrics, one of which is in a module beside it."""
import os, pathlib, time
from shades import shade
from kljax import metrics
metrics.lpips_available = lambda: False

@metrics.metric("brightness", compiled=False)
def mean(guess, truth):
    while pathlib.Path("wait").exists():
        pathlib.Path("waiting").touch()
        time.sleep(0.1)
    return shade(guess)

@metrics.metric("brightness", compiled=False)
def wrong(guess, truth):
    if pathlib.Path("bad").exists():
        raise ValueError("a bad day")
    return shade(guess)

@metrics.metric("brightness", compiled=False)
def deadly(guess, truth):
    if pathlib.Path("bad").exists():
        os._exit(1)
    return shade(guess)
'''
FILE = """
[fixed]
model = "dense"
image_size = 8
victims = 6
steps = 4
private_key_size = 16
optimiser = "adam"
{fixed}
[axes]
{axes}
"""
MANY = {
    "fixed": 'metrics = "mine:mean"',
    "axes": 'arm = ["none", "gaussian-noise=0.1"]\nseed = [0, 1]',
}
QUICK = {
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "PYTHONPATH": str(TESTS.parent),
    # Ray lets workers be as slow as whatever else runs, and writes tokens at home.
    "RAY_worker_niceness": "0",
    "RAY_AUTH_MODE": "disabled",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a user's modules, in which commands are called."""
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "shades.py").write_text("def shade(x): return float(x.mean())")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A cluster of a head that computes nothing and one node."""
    cluster_utils = pytest.importorskip("ray.cluster_utils", reason="Ray is missing")
    with pytest.MonkeyPatch.context() as patched:
        for name, value in QUICK.items():
            patched.setenv(name, value)
        cache = tmp_path_factory.mktemp("cache")
        patched.setenv("JAX_COMPILATION_CACHE_DIR", str(cache))
        cluster = cluster_utils.Cluster()
        try:
            add_node(cluster, 0)
            add_node(cluster, 1)
            yield cluster
        finally:
            cluster.shutdown()


def add_node(cluster, cores):
    """Starts a node of the cluster, on this machine."""
    return cluster.add_node(num_cpus=cores, object_store_memory=80 * 2**20)


def sweep(out, *options, **tables):
    """Starts ``kljax sweep`` in the current folder."""
    with open("file.toml", "w") as file:
        file.write(FILE.format(**MANY | tables))
    words = ["sweep", "file.toml", "--out", out, "--part", "4", "--no-report"]
    words += ["--layout.kind", "chunked", "--layout.chunk", "4", *options]
    return subprocess.Popen(
        [sys.executable, "-m", "kljax", *words],
        env=os.environ | QUICK,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process, status=0):
    """Waits for a command; what it printed."""
    output, _ = process.communicate(timeout=400)
    assert process.returncode == status, output
    return output


def wait_for(path, process):
    """Waits until a worker is in the middle of a chunk."""
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)


@pytest.mark.slow
def test_a_node_may_die_in_a_chunk_and_another_join_late(cluster, folder):
    (folder / "wait").touch()
    process = sweep("two", "--ray", cluster.address)
    wait_for(folder / "waiting", process)
    (first,) = cluster.worker_nodes
    add_node(cluster, 1)
    cluster.remove_node(first, allow_graceful=False)
    (folder / "wait").unlink()
    output = finish(process)
    assert "lost in chunk 00-0000-00000, try 1 of 3" in output
    assert output.count("joined") == 2 and "24/24 victims" in output
    assert read_failures(folder / "two") == []
    finish(sweep("one"))
    assert parts(folder / "two") == parts(folder / "one")
    assert len(parts(folder / "one")) == 6
    left = {path.name for path in (folder / "two").iterdir()}
    assert left == {"manifest.json", "layouts", "parts"}


@pytest.mark.slow
def test_cells_that_raise_or_kill_their_workers_are_named(cluster, folder):
    names = 'arm = ["none"]\nmetrics = ["mine:mean", "mine:wrong", "mine:deadly"]'
    tables = {"fixed": "", "axes": names}
    (folder / "bad").touch()
    output = finish(sweep("two", "--ray", cluster.address, **tables))
    assert "lost in chunk 00-0002-00000, try 3 of 3" in output
    errors = {
        record["point"]["metrics"]: record for record in read_failures(folder / "two")
    }
    assert errors.keys() == {"mine:wrong", "mine:deadly"}
    assert errors["mine:wrong"]["error"].startswith("ValueError: ")
    assert "in wrong" in errors["mine:wrong"]["traceback"]
    lost = "WorkerLost: 3 workers were lost in chunk 00-0002-0000"
    assert errors["mine:deadly"]["error"].startswith(lost)
    for record in errors.values():
        assert record["error"] in output and record["command"] in output
    (folder / "bad").unlink()
    # What is there is not made again, and Ray is not needed to go on.
    assert "12 attacks" in finish(sweep("two", "--retry-failed", **tables))
    finish(sweep("one", **tables))
    assert parts(folder / "two") == parts(folder / "one")


@pytest.mark.slow
def test_an_interrupted_sweep_goes_on_without_ray(cluster, folder):
    (folder / "wait").touch()
    process = sweep("two", "--ray", cluster.address)
    wait_for(folder / "waiting", process)
    process.send_signal(signal.SIGINT)
    assert "interrupted: go on with the same file" in finish(process, 130)
    (folder / "wait").unlink()
    finish(sweep("two"))
    finish(sweep("one"))
    assert parts(folder / "two") == parts(folder / "one")


@pytest.mark.slow
def test_a_full_disk_is_an_error_and_keeps_whole_parts(cluster, folder):
    out = folder / "two"
    out.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", out]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        output = finish(sweep("two", "--ray", cluster.address), 2)
        assert "No space left on device" in output
        there = parts(out)
        assert 0 < len(there) < 6 and read_failures(out) == []
        subprocess.run(["mount", "-o", "remount,size=9m", out], check=True)
        finish(sweep("two", "--ray", cluster.address))
        finish(sweep("one"))
        assert (
            parts(out) == parts(folder / "one") and there.items() <= parts(out).items()
        )
        assert store.missing_cells(store.read(out)) == []
    finally:
        subprocess.run(["umount", out], check=True)


CONNECT = """
import pathlib, sys
from kljax.studies.config import LeakConfig
from kljax.studies.sweeps import computing, make_cell, on_ray
pathlib.Path("here.npz").touch()
cell = make_cell({}, LeakConfig(arms=("none",), data="./here.npz"))
ready = on_ray.Cluster.wait_for_worker
def wait_for_worker(cluster):
    pathlib.Path("here.npz").unlink()  # as if it were on this machine alone
    ready(cluster)
on_ray.Cluster.wait_for_worker = wait_for_worker
with on_ray.connect(sys.argv[1], [cell], computing.Limits(), on_news=print):
    pass
"""


@pytest.mark.slow
def test_machines_without_what_cells_read_are_refused(cluster, folder):
    done = subprocess.run(
        [sys.executable, "-c", CONNECT, cluster.address],
        env=os.environ | QUICK,
        capture_output=True,
        text=True,
    )
    assert "ValueError: no machine of the Ray cluster can work" in done.stderr
    assert "cells read './here.npz', which is not there" in done.stderr
    assert "no work for" in done.stdout


def test_a_machine_says_what_it_lacks(folder):
    here = ray_worker.versions()
    site = ray_worker.Site(str(folder), ("mine.py",), here)
    assert ray_worker.find_problems(site) == ""
    site = site._replace(paths=("runs/none",), versions=here | {"jax": "0.1"})
    said = ray_worker.find_problems(site)
    assert f"jax is {here['jax']} there, and 0.1 where the command runs" in said
    assert "cells read 'runs/none', which is not there" in said


def test_own_modules_are_sent_with_kljax_and_no_others(folder, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    (folder / ".venv").mkdir()
    (folder / ".venv" / "other.py").touch()
    monkeypatch.syspath_prepend(folder / ".venv")
    for name in ("shades", "other"):
        monkeypatch.delitem(sys.modules, name, raising=False)
        __import__(name)
    kljax, *own = on_ray.modules_here()
    assert kljax == str(TESTS.parent / "kljax") and own == [str(folder / "shades.py")]


@pytest.mark.parametrize(
    ("address", "message"),
    (
        ("127.0.0.1:1", "no Ray cluster at '127.0.0.1:1': .*refused"),
        ("no.such.host.invalid:6379", "no Ray cluster at 'no.such.host.invalid:6379'"),
        ("ray://127.0.0.1:10001", "takes HOST:PORT of a Ray head, auto or local"),
    ),
)
def test_an_address_where_nobody_is_is_refused(address, message):
    pytest.importorskip("ray", reason="Ray is missing")
    with pytest.raises((RuntimeError, ValueError), match=message):
        with on_ray.connect(address, (), Limits()):
            pytest.fail("connected")


def test_without_ray_a_sweep_says_how_to_get_it(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr(cli.sweep.jax.config, "update", lambda *_: None)
    (folder / "file.toml").write_text(FILE.format(**MANY))
    assert cli.main(["sweep", "file.toml", "--ray"]) == 2
    assert "pip install 'kljax[ray]'" in capsys.readouterr().err
    assert not (folder / "runs").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    (
        (
            ["--ray-cpus", "1"],
            "--ray-cpus is of the workers of --ray, which is missing",
        ),
        (["--ray", "local", "--dry-run"], "--ray and --dry-run exclude each other"),
    ),
)
def test_options_of_ray_that_would_do_nothing_are_refused(
    folder, monkeypatch, capsys, options, said
):
    monkeypatch.setattr(cli.sweep, "say_what_it_takes", lambda *_: None)
    # A cell that does not exist, so that nothing is computed if they are not refused.
    (folder / "file.toml").write_text('[fixed]\nmodel = "none such"\n')
    assert cli.main(["sweep", "file.toml", *options]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (folder / "runs").exists()


def test_workers_without_ray_are_refused_from_python_too(folder):
    (folder / "file.toml").write_text('[fixed]\nmodel = "none such"\n')
    with pytest.raises(ValueError, match="ray_cpus=2 is of the workers of ray"):
        running.sweep("file.toml", folder / "out", ray_cpus=2)
    assert not (folder / "out").exists()
