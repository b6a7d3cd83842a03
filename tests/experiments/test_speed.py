"""The federated entries of experiments/speed.py, at sizes of seconds.

Peers are tested where they are installed: in this Python, or in the one that
TORCH_PYTHON or FEDJAX_PYTHON names.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import gpu_table
import numpy as np
import pytest
from timing import own_images, table
from timing.agreement import agreement, by_name
from timing.entries import federated, federated_scale, layouts
from timing.entries.federated import Work, averaging
from timing.peers import federated as peers
from timing.turns import turns
from tiny_studies import quick_compilation

from kljax.parallel import Layout

WORK = Work("lenet", clients=3, steps=2, batch=2, checked=2, tolerance=1e-4)
PEERS = {"torch": "torch-sequential-2-processes", "fedjax": "fedjax"}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(federated, "matmul_peak", lambda tiny: 1e12)
    with quick_compilation():
        yield


@pytest.mark.slow
def test_ours_alone(options, capsys):
    (made,) = federated.compare("fl-lenet-b10", options(rounds=2), WORK)
    assert made["ours"]["low"] > 0 and made["peers"] == {}
    assert made["settings"]["difference_to_slow_form"] < 1e-4
    # Twice the forward pass on the way back, less the gradient of the images.
    convolutions = 3 * 12 * 16**2, 12 * 12 * 8**2, 12 * 12 * 8**2
    forward = [2 * 25 * n for n in convolutions] + [2 * 768 * 10]
    flops = 3 * sum(forward) - forward[0]
    assert made["settings"]["flops_per_example"] == flops
    table.show(made)
    assert "examples/s, 0% of the matmul peak" in capsys.readouterr().out


def test_epochs_are_of_own_images():
    batches = own_images.epochs(CNN, np.random.default_rng(0))
    assert batches.shape == (3, 4, 2)
    for client, (first, second) in enumerate(batches.reshape(3, 2, 4)):
        own = {*range(4 * client, 4 * client + 4)}
        assert {*first} == {*second} == own
        assert first.tolist() != second.tolist()
    with pytest.raises(ValueError, match="3 steps of 2 are no whole passes"):
        own_images.epochs(CNN._replace(steps=3), np.random.default_rng(0))


CNN = Work("tutorial-cnn", 3, 4, 2, checked=4, tolerance=1e-4, own=4, rate=0.1)
RESNET = federated.WORK["fl-resnet20-b10"]._replace(clients=3, steps=2)


@pytest.mark.parametrize("library", PEERS)
@pytest.mark.parametrize(
    "work",
    (WORK, *(pytest.param(own, marks=pytest.mark.slow) for own in (CNN, RESNET))),
    ids=lambda w: w[0],
)
def test_a_peer_does_the_same_work(library, work, options):
    """Local steps, weights, norm statistics: all of a round."""
    python = os.environ.get(f"{library.upper()}_PYTHON", sys.executable)
    if python == sys.executable and not importlib.util.find_spec(library):
        pytest.skip(f"{library} is not installed")
    pythons = {f"{library}_python": python}
    given = options(PEERS[library], rounds=2, **pythons)
    (made,) = federated.compare(f"fl-{work.network}", given, work)
    assert made["settings"]["agreement"][PEERS[library]] <= work.tolerance
    assert made["ratios"][PEERS[library]] > 0


def test_agreement_sees_what_is_wrong():
    federation = averaging(WORK, Layout("loop"))
    seconds, compile_s, server = federation.round()
    assert seconds > 0 and compile_s > 0
    start, ours = by_name(federation.server), by_name(server)
    assert agreement(WORK, start, ours, ours, biased=True) == 0
    faster = {n: start[n] + 1.01 * (ours[n] - start[n]) for n in start}
    assert agreement(WORK, start, ours, faster, True) == pytest.approx(0.01, rel=1e-3)
    federation.weights = federation.weights[::-1]
    *_, other = federation.round()
    assert agreement(WORK, start, ours, by_name(other), True) > 100 * WORK.tolerance


def test_agreement_undoes_the_unbiased_variance():
    start = {"norm1/var": np.full(16, 1.0)}
    work = WORK._replace(checked=1, batch=10)
    count = 10 * 32**2
    ours = {"norm1/var": 0.9 * start["norm1/var"] + 0.1 * 2.0}
    theirs = {"norm1/var": 0.9 * start["norm1/var"] + 0.1 * 2.0 * count / (count - 1)}
    assert agreement(work, start, ours, theirs, biased=False) < 1e-12
    assert agreement(work, start, ours, theirs, biased=True) > 1e-4


@pytest.mark.slow
def test_scale(options):
    growth = federated_scale.Growth((2, 6), WORK)
    made = federated_scale.grow(options(rounds=2), growth)
    assert [own["settings"]["work"]["clients"] for own in made] == [2, 6]
    few, many = (own["settings"]["memory"] for own in made)
    # Two devices, one private key [1024] and 2 * (1024 + 1) * 12 lock weights a client.
    assert few["host_state_bytes"] == 2 * 4 * (1024 + 2 * 1025 * 12)
    assert many["host_state_bytes"] == 3 * few["host_state_bytes"]
    assert few["peak_device_bytes"] > 2 * 98_400
    assert few["process_growth_bytes"] >= 0


@pytest.mark.slow
def test_layouts(options):
    (made,) = layouts.of_rounds(
        options(rounds=2), {"some": WORK}, candidates=(Layout("chunked", 2),)
    )
    assert made["name"] == "some"
    assert set(made["peers"]) == {"chunked, chunk 2, matmul", "chunked, chunk 2, lax"}


def test_slow_candidates_run_once():
    values = {"fast": iter((10, 11, 12)), "near": iter((9, 1, 8)), "slow": iter((2,))}
    run = {name: lambda own=own: next(own) for name, own in values.items()}
    found = turns(3, run, keep=0.25)
    assert found == {"fast": [10, 11, 12], "near": [9, 1, 8], "slow": [2]}
    made = table.line("one", found.pop("fast"), found, "things/s", {})
    assert made["ratios"] == {"near": 1.5, "slow": 5}


def test_fastest_gives_nobody_far_behind_a_second_round():
    asked = []

    class Peer:
        def round(self, setting, steps):
            asked.append(setting)
            return peers.Round({"slow": 9.0, "good": 2.0, "bad": 5.0}[setting])

    assert peers.fastest(Peer(), ["slow", "good", "bad"], 10) == ("good", 9.0)
    assert asked == ["slow"] + ["slow"] * 2 + ["good"] * 2 + ["bad"]


def test_a_missing_peer_is_named(monkeypatch, capsys):
    speed = importlib.import_module("speed")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    command = "speed.py --json x.json --only fl-lenet-b10 fl-scale --peers fedjax"
    monkeypatch.setattr(sys, "argv", command.split())
    with pytest.raises(SystemExit):
        speed.arguments()
    assert "name a Python that has it with --fedjax-python" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", command.split()[:-1])  # nobody beside us
    assert speed.arguments().peers == []


def test_a_gpu_that_is_none_is_refused(tmp_path):
    script = Path(gpu_table.__file__).parent / "gpu.sh"
    env = os.environ | {"PYTHON": sys.executable, "JAX_PLATFORMS": "cpu"}
    made = subprocess.run(
        [script, "--out", tmp_path / "out"], env=env, capture_output=True, text=True
    )
    assert made.returncode == 1 and "JAX sees cpu and no GPU" in made.stderr
    made = subprocess.run([script, "--fast"], capture_output=True, text=True)
    assert made.returncode == 2 and "unknown option --fast" in made.stderr


def test_peers_are_left_out_for_a_reason(tmp_path):
    assert "no-such-python" in gpu_table.why_no_torch(
        f"{tmp_path}/no-such-python", True
    )
    python = tmp_path / "python"
    for said, reason in (
        ("echo 'ModuleNotFoundError: no torch' >&2; exit 1", "ModuleNotFoundError"),
        ("echo False", "sees no GPU"),
    ):
        python.write_text(f"#!/bin/sh\n{said}\n")
        python.chmod(0o755)
        assert reason in gpu_table.why_no_torch(str(python), gpu=True)
    python.write_text("#!/bin/sh\necho True\n")
    assert gpu_table.why_no_torch(str(python), gpu=True) is None


def test_what_a_gpu_gave_is_one_table(tmp_path, capsys):
    settings = {"agreement": {"torch-func": 2e-6}}
    made = table.line("fl", [3.0], {"torch-func": [2.0]}, "rounds/min", settings)
    (tmp_path / "fl.json").write_text(json.dumps([made]))
    (tmp_path / "sweep-64.failed").write_text("stopped after 90 s\n")
    (tmp_path / "machine.json").write_text(json.dumps({"peers_left_out": "no torch"}))
    gpu_table.summarise(tmp_path)
    said = capsys.readouterr().out
    assert "torch-func: 2" in said and "1.50" in said and "2e-06" in said
    assert "missing: sweep-64: stopped after 90 s" in said and "no torch" in said
    whole = json.loads((tmp_path / "gpu.json").read_text())
    assert whole["entries"][0]["file"] == "fl"
    gpu_table.summarise(tmp_path)  # what it wrote itself is no entry


# In place of Python: begins as on a GPU with peers, and measures nothing.
PRETENDED = """#!{python}
import json, os, pathlib, runpy, sys
script, *given = sys.argv[1:]
if script != "gpu_table.py":
    print("a last line")
    part = pathlib.Path(given[given.index("--json") + 1])
    with open({log!r}, "a") as log:
        print(part.name, script, *given[:-2], file=log)
    if part.name in os.environ.get("BROKEN", ""):
        sys.exit(3)
    values = {{"median": 1, "low": 1, "high": 1}}
    made = {{"name": part.name, "ours": values, "unit": "x/s", "device": "gpu: none"}}
    made |= {{"peers": {{}}, "ratios": {{}}, "settings": {{}}}}
    part.write_text(json.dumps([made]))
elif "--begin" in given:
    folder = pathlib.Path(given[0])
    (folder / "machine.json").write_text(json.dumps({{"peers_left_out": None}}))
    (folder / "peers").write_text("torch-eager torch-func torch-compile")
else:
    sys.argv = [script, *given]
    runpy.run_path(script, run_name="__main__")
"""


def test_every_entry_for_a_gpu_runs_once(tmp_path):
    script = Path(gpu_table.__file__).parent / "gpu.sh"
    log, python, out = tmp_path / "log", tmp_path / "python", tmp_path / "out"
    python.write_text(PRETENDED.format(python=sys.executable, log=str(log)))
    python.chmod(0o755)

    def measure(*options, **variables):
        log.write_text("")
        env = os.environ | {"PYTHON": str(python)} | variables
        command = [script, "--out", out, *options]
        made = subprocess.run(command, env=env, capture_output=True, text=True)
        assert made.returncode == 0, made.stderr
        lines = [line.split(" ", 1) for line in log.read_text().splitlines()]
        return made.stdout, {part[1:-5]: asked for part, asked in lines}

    said, asked = measure(BROKEN=".ig-resnet20.part")
    assert "missing: ig-resnet20: failed (3): a last line" in said
    assert "--peers torch-eager torch-func torch-compile" in asked["fl-cnn-b50"]
    # The search for its peers' settings is not made twice.
    assert f"--peers-from {out}/dlg-lenet-eval.json" in asked["dlg-lenet-attack"]
    assert asked["dlg-lenet-eval-compiled"].endswith("--peers torch-compile")
    missing = {"sweep-64", "sweep-4096", "fl-scale", "layouts-ig-convnet64", "cost"}
    assert {*missing, "chunks", "fedavg-inversion", "ig-convnet64"} < {*asked}
    said, again = measure()
    assert {*again} == {"ig-resnet20"} and "fl-scale: there already" in said
    assert "missing" not in said
    whole = json.loads((out / "gpu.json").read_text())
    files = {made["file"] for made in whole["entries"]}
    assert files == {*asked} - {*gpu_table.TABLES}
    (out / "fl-scale.json").unlink()
    said, none = measure("--limit", "5")
    assert not none and "missing: fl-scale: not begun: the 5 s are over" in said
    said, none = measure("--only", "cost")
    assert not none and "fl-scale: there" not in said
