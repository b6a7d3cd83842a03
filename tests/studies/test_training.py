"""The training job: what it writes, and that it goes on where it was."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from search_path import SEARCH_PATH
from tiny_studies import compiled_once

from kljax.core import files
from kljax.core.types import Private
from kljax.federated import checkpoints, evaluation
from kljax.parallel import Layout
from kljax.studies import run_folder
from kljax.studies.builder import run_setup
from kljax.studies.config import TrainConfig
from kljax.studies.training import train

TINY = {
    "model": "dense",
    "image_size": 8,
    "examples": 200,
    "test_examples": 50,
    "public_examples": 0,
    "batch": 8,
    "rounds": 4,
    "save_every": 2,
    "private_key_size": 16,
    "learning_rate": 0.3,
    "arms": ("keylock",),
    "layout": Layout("loop"),
}
FILES = {"config.json", "partition.png", "metrics.csv", "summary.json", "summary.md"}
FILES |= {"curves.png"}
ARMS = ("none", "keylock")


@pytest.fixture(autouse=True, scope="module")
def quickly(tmp_path_factory):
    with compiled_once(tmp_path_factory.mktemp("compiled")):
        yield


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    """Works in a directory of its own."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def whole(quickly, tmp_path_factory):
    """One uninterrupted run and its folder, for all tests."""
    folder = tmp_path_factory.mktemp("runs") / "deep" / "run"
    return train(whole_config(), folder), folder


def whole_config(**changes):
    return tiny(arms=ARMS, public_examples=10, keep_rounds=(0, 1, 3), **changes)


def tiny(**changes) -> TrainConfig:
    return TrainConfig(**(TINY | changes))


def states(result):
    return {name: (arm.server, arm.clients) for name, arm in result.arms.items()}


def measured(result):
    """Everything in the rows that is not a time."""
    return [
        {name: value for name, value in row.items() if not name.endswith("_s")}
        for row in result.rows
    ]


def assert_same(one, other):
    """Bit by bit."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def stored(result, folder, name="keylock"):
    """Reads the states at the end of a run's arm."""
    arm = result.arms[name]
    rounds = result.setup.config.rounds
    return checkpoints.restore(folder / name, rounds, arm.server, arm.clients)


# --- what comes out ---------------------------------------------------------------


@pytest.mark.slow
def test_every_arm_gets_the_mean_start_of_the_lock(whole):
    setup = whole[0].setup
    built = run_setup.arm_rounds(setup, "keylock")
    lock = built.rounds.init_lock(run_setup.random_keys(setup.config).init)
    mean = Private(jnp.full(setup.config.private_key_size, 0.5), lock)
    chex.assert_trees_all_close(
        run_setup.mean_gates(setup), built.defence.gates((), mean)
    )


def test_a_run_learns_and_writes_its_folder(whole):
    (result, folder), arms = whole, ARMS
    assert {path.name for path in folder.iterdir()} == FILES | set(arms)
    rows = run_folder.read_rows(folder)
    assert rows == result.rows
    assert [(row["arm"], row["round"]) for row in rows] == [
        (arm, number) for arm in arms for number in range(4)
    ]
    for arm in arms:
        own = [row for row in rows if row["arm"] == arm]
        assert own[-1]["loss"] < 0.7 * own[0]["loss"]
        assert own[-1]["test_accuracy"] > 0.2  # twice chance
        # The last round's state and the kept ones; the checkpoint at 2 is gone.
        assert checkpoints.saved(folder / arm) == [0, 1, 3, 4]

    summary = json.loads((folder / "summary.json").read_text())
    assert summary == json.loads(json.dumps(result.summary))
    assert list(summary) == ["schema_version", "accuracy", "throughput", "config"]
    assert summary["schema_version"] == 2
    assert list(summary["accuracy"]) == list(arms)
    for arm in arms:
        assert {*summary["accuracy"][arm]} <= {*evaluation.TESTS}
        for found in summary["accuracy"][arm].values():
            assert set(found) == {"mean", "std", "values"}
            assert found["mean"] == pytest.approx(np.mean(found["values"]))
    lock = summary["accuracy"]["keylock"]
    assert {"own", "random_key", "zero_lock", "refit_mean_10"} <= set(lock)
    assert "refit_unit_100" not in lock  # there are ten public examples
    outsiders = {"refit_unit_10", "refit_mean_10"}
    assert set(summary["accuracy"]["none"]) == {"own", *outsiders}
    # Three clients: those that are watched while training are those evaluated.
    last = [row["test_accuracy"] for row in rows if row["arm"] == "keylock"][-1]
    assert lock["own"]["mean"] == pytest.approx(last)
    speed = summary["throughput"]
    assert set(speed) == {
        *("clients_per_s", "examples_per_s", "compile_s", "run_s", "device")
    }
    run_s = sum(row["run_s"] for row in rows)
    assert speed["clients_per_s"] == pytest.approx(2 * 4 * 3 / run_s)
    # 66 or 67 examples each: eight batches of 8.
    assert speed["examples_per_s"] == pytest.approx(2 * 4 * 3 * 64 / run_s)
    assert speed["compile_s"] > 0 and "cpu" in speed["device"]

    config_there = json.loads((folder / "config.json").read_text())
    assert config_there == summary["config"]
    assert run_folder.read_config(folder) == whole_config()
    assert "jax" in config_there["versions"] and "Handwritten" in str(config_there)
    text = (folder / "summary.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| own "))
    assert f"{100 * lock['own']['mean']:.1f} ± " in row
    assert "- `zero_lock`: " in text


def test_a_kept_round_is_the_state_before_that_round(whole):
    """Replayed with what the preparation makes of the configuration alone."""
    result, folder = whole
    config, setup = whole_config(), run_setup.build_run_setup(whole_config())
    rounds = run_setup.arm_rounds(setup, "keylock").rounds
    server, clients = like = run_setup.start(setup, rounds)
    for number in range(4):
        assert int(server.round) == number
        if number in config.keep_rounds:
            kept = checkpoints.restore(folder / "keylock", number, *like)
            assert_same(kept, (server, clients))
        server, _ = rounds.run_round(
            run_setup.random_keys(config).rounds,
            server,
            clients,
            run_setup.cohort_of(config, number),
            run_setup.batches_of(setup, number),
        )
        server = jax.device_get(server)
    assert_same((server, clients), states(result)["keylock"])
    assert_same((server, clients), stored(result, folder))


def test_arms_start_alike_and_train_on_the_same_batches():
    setup = run_setup.build_run_setup(tiny(arms=ARMS))
    starts = [
        run_setup.start(setup, run_setup.arm_rounds(setup, name).rounds)[0]
        for name in ARMS
    ]
    assert_same(starts[0].public.model, starts[1].public.model)
    fetch = run_setup.batches_of(setup, 1)
    batches, examples = fetch(np.arange(3))
    assert batches.inputs.shape == (3, 8, 8, 8, 8, 3)
    alone, _ = fetch(np.array([2]))
    assert_same(jax.tree.map(lambda x: x[2], batches), _first(alone))
    other, _ = run_setup.batches_of(setup, 2)(np.array([2]))
    assert not np.array_equal(other.inputs, alone.inputs)
    assert examples.tolist() == [len(own) for own in setup.partition]
    assert sum(examples) == 200 and len(setup.test) == 50


def _first(tree):
    return jax.tree.map(lambda x: x[0], tree)


def test_train_test_and_public_examples_share_nothing():
    setup = run_setup.build_run_setup(
        tiny(examples=None, test_examples=None, public_examples=None)
    )
    parts = (setup.task.dataset, setup.test, setup.public)
    # Digits: a fifth to test on, a tenth of the rest public.
    assert [len(part) for part in parts] == [1295, 359, 143]
    images = [image.tobytes() for part in parts for image in part.inputs]
    assert len(set(images)) == len(images)


@pytest.mark.slow
def test_every_option_is_heard(tmp_path):
    config = tiny(
        arms=("keylock+norm-clipping=5",),
        partition="by-size=1,2,4",
        cohort=2,
        optimiser="adam",
        learning_rate=0.01,
        drops=(1, 2),
        server_learning_rate=0.5,
        server_momentum=0.5,
        proximal=0.1,
        weighting="uniform",
        reset_optimiser=True,
        augment="crop_flip",
        normalise="cifar10",
        loss="squared_error",
        local_epochs=2,
        local_steps=9,
        evaluate_every=3,
        lock_init=0.5,
        lock_activation="sigmoid",
        fresh_private_keys=True,
        init=0.1,
    )
    result = train(config)
    assert [row["clients"] for row in result.rows] == [2] * 4
    measured = [row["test_accuracy"] is not None for row in result.rows]
    assert measured == [False, False, True, True]  # the last one always
    setup = result.setup
    # 29, 57 and 114 examples in batches of 8, twice, nine at most.
    counts = [run_setup.local_steps(config, len(own)) for own in setup.partition]
    assert counts == [6, 9, 9] and setup.steps == 9
    cohorts = [run_setup.cohort_of(config, number) for number in range(4)]
    for row, cohort in zip(result.rows, cohorts, strict=True):
        assert row["examples"] == 8 * sum(counts[client] for client in cohort)
    server = result.arms[config.arms[0]].server
    assert np.all(np.isfinite(server.public.model["fc/kernel"]))
    assert jax.tree.leaves(server.optimiser)  # the server's momentum
    start = run_setup.start(setup, run_setup.arm_rounds(setup, config.arms[0]).rounds)
    assert np.abs(start[0].public.model["fc/kernel"]).max() <= 0.1


def test_the_learning_rate_drops_by_round():
    config = tiny(momentum=0.0, weight_decay=0.0, drops=(2, 3), drop_factor=0.5)
    method = run_setup.local_optimiser(config)

    def move(number):
        optimiser = method(jnp.int32(number))
        return optimiser.update(1.0, optimiser.init(1.0), 1.0)[0]

    moves = [float(move(number)) for number in range(5)]
    assert moves == pytest.approx([-0.3, -0.3, -0.15, -0.075, -0.075])
    steady = run_setup.local_optimiser(tiny())
    assert isinstance(steady, optax.GradientTransformation)


def test_weight_decay_enters_the_gradient_before_momentum():
    config = tiny(weight_decay=0.5, nesterov=False)
    optimiser = run_setup.local_optimiser(config)
    state = optimiser.init(2.0)
    first, state = optimiser.update(1.0, state, 2.0)
    assert float(first) == pytest.approx(-0.3 * (1 + 0.5 * 2))
    second, _ = optimiser.update(0.0, state, 0.0)
    assert float(second) == pytest.approx(-0.3 * 0.9 * 2)


# --- cut off, and going on --------------------------------------------------------


class CutOff(Exception):
    pass


def cut_off_at(arm, number):
    def on_round(row):
        if (row["arm"], row["round"]) == (arm, number):
            raise CutOff

    return on_round


@pytest.mark.slow
def test_a_run_that_is_cut_off_goes_on_to_the_same_parameters(whole, tmp_path):
    (expected, _), folder = whole, tmp_path / "run"
    with pytest.raises(CutOff):
        train(whole_config(), folder, on_round=cut_off_at("keylock", 2))
    # The state before round 3 was saved, and then it was cut off.
    assert checkpoints.saved(folder / "keylock") == [0, 1, 3]
    for part in checkpoints.PARTS:  # as if before
        shutil.rmtree(folder / "keylock" / part / "3")
    assert run_folder.read_summary(folder) is None
    assert len(run_folder.read_rows(folder)) == 4 + 3
    begun = []
    # A speed option may change on the way.
    again = whole_config(convolution="lax")
    result = train(again, folder, on_arm=begun.append)
    assert [(arm.name, arm.round) for arm in begun] == [("none", 4), ("keylock", 1)]
    assert begun[1].private_bytes > 3 * 4 * (16 + 2 * 17 * 64)
    for name in ARMS:
        assert_same(states(result)[name], states(expected)[name])
        assert checkpoints.saved(folder / name) == [0, 1, 3, 4]
        assert_same(stored(result, folder, name), states(expected)[name])
    assert measured(result) == measured(expected)
    assert result.summary["accuracy"] == expected.summary["accuracy"]


def test_nothing_is_left_to_do_for_a_finished_run(whole):
    result, folder = whole
    rounds = []
    again = train(whole_config(), folder, on_round=rounds.append)
    assert rounds == [] and again.rows == result.rows
    assert_same(states(again), states(result))


SCRIPT = """
import sys
from pathlib import Path

import jax

from jax.experimental.compilation_cache import compilation_cache
from search_path import SEARCH_PATH
from tiny_studies import quick_compilation
from test_training import killable
from kljax.studies.training import train
from kljax.core.trees import named

jax.config.update("jax_default_matmul_precision", "highest")
with quick_compilation():
    train(killable(), Path(sys.argv[1]))
"""


def killable() -> TrainConfig:
    return tiny(rounds=60, save_every=1, keep_rounds=(7, 20), evaluate_every=5)


def in_a_process(folder):
    command = [sys.executable, "-c", SCRIPT, str(folder)]
    return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": SEARCH_PATH})


def rounds_written(folder):
    return len(run_folder.read_rows(folder)) if folder.exists() else 0


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_to_the_same_parameters(tmp_path):
    """Really killed, at random moments: while training, saving or removing."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert in_a_process(whole).wait(300) == 0
    generator, kills, reached = random.Random(), 0, []
    for _ in range(5):
        before = rounds_written(cut)
        process = in_a_process(cut)
        deadline = time.monotonic() + 300
        while process.poll() is None and rounds_written(cut) in (0, before):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(generator.uniform(0, 1.5))
        process.send_signal(signal.SIGKILL)
        kills += process.wait(60) == -signal.SIGKILL
        reached.append(rounds_written(cut))
    assert kills >= 2, reached  # otherwise nothing was tested
    assert in_a_process(cut).wait(300) == 0

    setup = run_setup.build_run_setup(killable())
    like = run_setup.start(setup, run_setup.arm_rounds(setup, "keylock").rounds)
    assert checkpoints.saved(cut / "keylock") == [7, 20, 60]
    for number in (7, 20, 60):
        one, other = (
            checkpoints.restore(folder / "keylock", number, *like)
            for folder in (whole, cut)
        )
        assert_same(one, other)
    timeless = [
        [{n: v for n, v in row.items() if not n.endswith("_s")} for row in rows]
        for rows in map(run_folder.read_rows, (whole, cut))
    ]
    assert timeless[0] == timeless[1] and len(timeless[0]) == 60
    accuracies = [
        run_folder.read_summary(folder)["accuracy"] for folder in (whole, cut)
    ]
    assert accuracies[0] == accuracies[1]


def test_another_configuration_is_refused_with_its_differences(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    described = run_folder.describe(tiny(), "mine")
    files.write_json(folder / "config.json", described)
    run_folder.check_same(folder, tiny())
    run_folder.check_same(folder, tiny(layout=Layout("vmap"), convolution="lax"))
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(FileExistsError) as error:
        train(tiny(rounds=30, arms=("none",)), folder)
    assert "rounds: 4 there, 30 here" in str(error.value)
    assert 'arms: ["keylock"] there, ["none"] here' in str(error.value)
    assert "batch" not in str(error.value)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    # A run of an older version, without the option: it was as it is by default.
    del described["proximal"]
    files.write_json(folder / "config.json", described)
    run_folder.check_same(folder, tiny())
    with pytest.raises(FileExistsError, match="proximal: 0.0 there, 0.5 here"):
        run_folder.check_same(folder, tiny(proximal=0.5))
    for content in ("{}", '{"job": "leak"}'):
        (folder / "config.json").write_text(content)
        with pytest.raises(FileExistsError, match="is no run of kljax train"):
            run_folder.check_same(folder, tiny())
    # Killed before its first file was whole, a run can begin again; what somebody else
    # has put there is left alone.
    (folder / "config.json").rename(folder / ".config.json")
    run_folder.check_same(folder, tiny())
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is no run of kljax train"):
        run_folder.check_same(folder, tiny())
