"""Trainings in two processes: the result of one, and who writes."""

import json
import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from search_path import SEARCH_PATH
from test_training import CutOff, cut_off_at, tiny
from tiny_studies import quick_compilation

from kljax import cli
from kljax.federated import checkpoints
from kljax.parallel import Layout, agreement
from kljax.studies import run_folder
from kljax.studies.training import train

SCRIPT = """
import sys
import jax
out, process, address, what = sys.argv[1:]
jax.config.update("jax_default_matmul_precision", "highest")
from kljax.parallel.processes import stay_together
stay_together(address, 2, int(process))
from pathlib import Path
import test_joint_training
from tiny_studies import quick_compilation
with quick_compilation():
    getattr(test_joint_training, what)(Path(out), int(process))
"""


def joint(**changes):
    """Five clients on two processes, one of which has three."""
    given = {
        "arms": ("keylock",),
        "rounds": 3,
        "save_every": 1,
        "keep_rounds": (1,),
        "clients": 5,
        "public_examples": 10,
        "aggregator": "median",
        "roles": ("1:model-replacement",),
        "trigger": "patch=2",
        "layout": Layout("sharded_loop", 2),
    }
    return tiny(**(given | changes))


def in_two_processes(out, what):
    """Runs a function of this file in both; gives their exit codes and outputs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "PYTHONPATH": os.pathsep.join([SEARCH_PATH, os.environ.get("PYTHONPATH", "")]),
        "JAX_PLATFORMS": "cpu",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(out), str(n), address, what],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for n in (0, 1)
    ]
    try:
        outputs = [process.communicate(timeout=400)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], outputs


def train_and_go_on(out, process):
    """Stops after the second round, and goes on; only process 0 is given a folder."""
    # Process 1 may name what it likes: it writes nothing.
    folder = out / ("run" if process == 0 else "nowhere")
    try:
        train(joint(), folder, on_round=cut_off_at("keylock", 1))
    except CutOff:
        begun = []
        result = train(joint(), folder, on_arm=begun.append)
        assert [arm.round for arm in begun] == [2, 0]
    arm = result.arms["keylock"]
    said = {"accuracy": arm.accuracy, "success": arm.attack_success}
    said["rows"] = [row["excluded"] for row in result.rows]
    said["secret"] = arm.clients.private.secret.tolist()
    (out / f"{process}.json").write_text(json.dumps(said))


def fail_in_one(out, process):
    """Process 0 finds something else in its folder; neither trains, neither waits."""
    (out / "run").mkdir(exist_ok=True)
    (out / "run" / "notes.txt").write_text("mine")
    train(joint(), out / "run")


def test_no_backend_is_asked_for_before_processes_have_met():
    """Or `jax.distributed` refuses: neither an import nor a command does that."""
    code = """
import jax, pathlib
def asked(*args):
    raise SystemExit("the backend was asked for")
jax.default_backend = jax.devices = jax.local_devices = asked
import kljax, kljax.cli.commands
from kljax.cli.train import Train
Train()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_two_processes_train_what_one_does(tmp_path):
    codes, outputs = in_two_processes(tmp_path, "train_and_go_on")
    assert codes == [0, 0], "\n".join(outputs)
    assert not (tmp_path / "nowhere").exists()
    folder = tmp_path / "run"
    with quick_compilation():
        expected = train(joint(), tmp_path / "alone")
    arm = expected.arms["keylock"]
    like = arm.server, arm.clients
    assert checkpoints.saved(folder / "keylock") == [1, 3]
    found = checkpoints.restore(folder / "keylock", 3, *like)
    for one, other in zip(*map(jax.tree.leaves, (found, like)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    rows, wanted = run_folder.read_rows(folder), expected.rows
    for row, other in zip(rows, wanted, strict=True):
        for name in ("loss", "train_accuracy", "test_accuracy", "attack_success"):
            assert row[name] == pytest.approx(other[name], abs=1e-3)
    summary = run_folder.read_summary(folder)
    for test, value in expected.summary["accuracy"]["keylock"].items():
        there = summary["accuracy"]["keylock"][test]["mean"]
        assert there == pytest.approx(value["mean"], abs=0.041)  # two of fifty images
    # Both processes say the same, and have the states of all clients.
    zero, one = (json.loads((tmp_path / f"{n}.json").read_text()) for n in (0, 1))
    assert zero == one
    np.testing.assert_allclose(zero["secret"], arm.clients.private.secret, rtol=1e-6)


@pytest.mark.slow
def test_what_one_process_refuses_ends_both(tmp_path):
    codes, outputs = in_two_processes(tmp_path, "fail_in_one")
    assert 0 not in codes
    assert "exists and is no run of kljax train" in outputs[0]
    assert "process 0 of this job failed, and says itself why" in outputs[1]


def test_alone_a_process_asks_nobody():
    states = {"x": np.arange(3.0)}
    assert agreement.leads()
    assert agreement.from_first((1, "a")) == (1, "a")
    assert agreement.arrays_from_first(states) is states
    agreement.fill_in_clients(states)
    assert states["x"].tolist() == [0, 1, 2]
    marks = np.array([True, False])
    assert agreement.true_anywhere(marks) is marks
    with pytest.raises(ValueError, match="as it is"), agreement.agreed():
        raise ValueError("as it is")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--process 0", "needs coordinator, processes and process together"),
        ("--coordinator a:1 --processes 2 --process x", "number from 0 on, or auto"),
        ("--coordinator a:1 --processes 2 --process 2", "process must be from 0 to 1"),
    ],
)
def test_who_cannot_meet_is_told(options, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", *options.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("kljax: ") and message in line
    assert list(tmp_path.iterdir()) == []
