"""Leakage at any round: clients of a run are attacked at states that it kept."""

import dataclasses
import functools
import json
import pathlib

import jax
import numpy as np
import pytest
from tiny_studies import quick_compilation, scored

from kljax import cli, data, metrics
from kljax.federated import checkpoints
from kljax.parallel import Layout
from kljax.studies import scoring, training
from kljax.studies.builder import from_run, run_client, run_setup
from kljax.studies.config import LeakConfig, TrainConfig
from kljax.studies.leakage import leak

RATE = 0.05
RUN = TrainConfig(
    model="dense",
    image_size=8,
    examples=60,
    test_examples=20,
    public_examples=0,
    clients=3,
    partition="by-size=1,2,3",
    rounds=2,
    batch=4,
    learning_rate=RATE,
    private_key_size=16,
    init=0.3,
    drops=(1,),
    keep_rounds=(0, 1),
    arms=("none", "keylock"),
    layout=Layout("loop"),
)
CLIENT = 1
REVEAL = "outside_package:measured_reveal"  # answers with the view, and measures


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of two rounds with its states before each."""
    place = tmp_path_factory.mktemp("runs") / "run"
    with quick_compilation():
        training.train(RUN, place)
    return str(place)


@pytest.fixture(autouse=True)
def quickly(monkeypatch, tmp_path):
    monkeypatch.setattr(metrics, "lpips_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    with quick_compilation():
        yield


def study(folder, **changes):
    options = {
        "from_run": folder,
        "client": CLIENT,
        "victims": 2,
        "steps": 2,
        "attack": REVEAL,
        "layout": Layout("chunked", 2),
    }
    return LeakConfig(**(options | changes))


UPDATE = {"upload": "update", "local_steps": 2, "batch": 1, "labels": "given"}


def views(result):
    return {a.arm.name: a.attacked.reconstruction.info["view"] for a in result.arms}


@functools.cache
def beginning(arm):
    """The states that the run began with, and the lock weights that were drawn."""
    setup = run_setup.build_run_setup(RUN)
    rounds = run_setup.arm_rounds(setup, arm).rounds
    lock_weights = jax.jit(rounds.init_lock)(run_setup.random_keys(RUN).init)
    return run_setup.start(setup, rounds), lock_weights


def states(folder, arm, number):
    """The states as the run kept them, and the lock weights that the server drew."""
    start, lock_weights = beginning(arm)
    kept = checkpoints.restore(pathlib.Path(folder) / arm, number, *start)
    return *kept, lock_weights


def of_client(tree, client=CLIENT):
    return jax.tree.map(lambda x: x[client], tree)


def assert_each(found, expected):
    """Compares what every victim was shown with one tree."""
    found, expected = jax.tree.leaves(found), jax.tree.leaves(expected)
    assert len(found) == len(expected) > 0
    for rows, one in zip(found, expected, strict=True):
        np.testing.assert_array_equal(rows, np.broadcast_to(one, rows.shape))


# --- what is attacked ------------------------------------------------------------


@pytest.fixture(scope="module")
def gradients(folder):
    """The gradients of a client before either round."""
    with quick_compilation():
        quick = {"attack": "outside_package:reveal"}
        return [leak(study(folder, round=number, **quick)) for number in (0, 1)]


def test_every_arm_of_the_run_is_attacked(gradients):
    for result in gradients:
        assert [arm.arm.name for arm in result.arms] == [
            "none",
            "keylock/known",
            "keylock/regress_gates",
            "keylock/fixed_random",
        ]
        assert result.config.arms == tuple(arm.arm.name for arm in result.arms)


def test_the_server_holds_the_state_that_was_kept(gradients, folder):
    kernels = []
    for number, result in enumerate(gradients):
        for name, view in views(result).items():
            server, clients, initial = states(folder, name.partition("/")[0], number)
            assert_each(view.public, server.public)
            if name == "keylock/known":
                mine = of_client(clients.private)
                assert_each(view.private_key, mine.secret)
                assert_each(view.lock_weights, mine.trainable)
            if name == "keylock/fixed_random":
                assert view.private_key is None
                assert_each(view.lock_weights, initial)
            if name in ("none", "keylock/regress_gates"):
                assert view.private_key is view.lock_weights is view.lock_grads is None
            kernels.append(view.public.model["fc/kernel"][0])
    assert not np.array_equal(kernels[0], kernels[4])  # the rounds differ


def test_the_lock_has_moved_on_after_round_0(gradients):
    for result, same in zip(gradients, (True, False), strict=True):
        known, drawn = (
            views(result)[f"keylock/{strategy}"].lock_weights
            for strategy in ("known", "fixed_random")
        )
        alike = jax.tree.map(np.array_equal, known, drawn)
        assert all(jax.tree.leaves(alike)) == same
    facts = {arm.arm.name: arm.threat.knowledge for arm in gradients[1].arms}
    assert facts["keylock/fixed_random"].lock_weights == "initial"
    assert facts["keylock/known"].lock_weights == "known"
    assert facts["keylock/regress_gates"].lock_weights == "hidden"


def test_victims_are_the_clients_own(gradients, folder):
    setup = run_setup.build_run_setup(RUN)
    result = gradients[0]
    chosen = result.victims.indices.ravel()
    assert set(chosen) <= set(setup.partition[CLIENT].tolist())
    images, labels = setup.task.dataset.fetch(chosen)
    np.testing.assert_array_equal(result.victims.inputs[:, 0], images)
    np.testing.assert_array_equal(result.victims.labels[:, 0], labels)
    groups = setup.task.dataset.groups_of(chosen)
    np.testing.assert_array_equal(result.victims.groups, groups)
    other = run_client.capture(from_run.settle(study(folder, client=2)))
    assert not set(other.own[0]) & set(setup.partition[CLIENT].tolist())


def test_the_victim_of_a_row_is_found_in_the_dataset_that_the_row_names(gradients):
    """A run trains on a part of it: there the same image has another number."""
    result = gradients[0]
    rows = [row for row in scored(result) if row["arm"] == result.arms[0].arm.name]
    victims = [row["victim"] for row in rows]
    (name,) = {row["data"] for row in rows}
    images, labels = data.load(name, shape=result.dataset.shape).fetch(victims)
    np.testing.assert_array_equal(images, result.victims.inputs[:, 0])
    assert labels.tolist() == [row["label"] for row in rows]
    assert victims != result.victims.indices[:, 0].tolist()


def test_a_study_says_what_it_took_from_the_run(gradients, folder):
    for number, result in enumerate(gradients):
        config = result.config
        for name in from_run.SETTLED:
            assert getattr(config, name) == getattr(RUN, name), name
        assert (config.round, config.client, config.from_run) == (
            number,
            CLIENT,
            folder,
        )
        assert config.weights == "shared"
        assert from_run.settle(config) == config
        rows = scoring.score_rows(result)
        assert {row["weights"] for row in rows} == {"shared"}
        assert {row["model"] for row in rows} == {"dense"}


# --- whole updates ---------------------------------------------------------------


def losses_at_truth(result):
    """Loss at the truth beside that of missing the faintest tensor, by arm."""
    return {
        a.arm.name: np.max(a.attacked.loss_at_truth / a.attacked.loss_scale)
        for a in result.arms
    }


@pytest.mark.slow
def test_an_update_is_replayed_exactly_in_round_0(folder):
    arms = ("none", "keylock/known")
    result = leak(study(folder, **UPDATE, arms=arms, threat=("lock_grads=shared",)))
    assert result.config.examples == 2
    assert result.victims.inputs.shape[:2] == (2, 2)
    assert all(loss < 1e-6 for loss in losses_at_truth(result).values())
    for arm in result.arms:
        knows = arm.threat.knowledge
        assert (knows.upload, knows.examples) == ("update", 2)
        view = arm.attacked.reconstruction.info["view"]
        # It is a change: as large as steps of this rate make it.
        norms = [
            np.sqrt(sum(np.sum(x[n] ** 2) for x in jax.tree.leaves(view.grads)))
            for n in range(2)
        ]
        assert all(RATE < norm < 100 * RATE for norm in norms)


def test_a_momentum_from_before_is_the_clients_secret(folder):
    kept, fresh = (
        losses_at_truth(
            leak(study(folder, **UPDATE, round=1, client_optimiser=o, arms=("none",)))
        )["none"]
        for o in ("kept", "fresh")
    )
    assert fresh < 1e-6 < 1e-2 < kept


def test_the_rate_of_the_round_is_replayed(folder):
    """It drops in round 1, and changes are measured in it."""
    found = [
        run_client.capture(
            from_run.settle(study(folder, **UPDATE, round=number))
        ).protocol
        for number in (0, 1)
    ]
    rates = [protocol.learning_rate for protocol in found]
    np.testing.assert_allclose(rates, [RATE, 0.2 * RATE])


@pytest.mark.parametrize(
    ("changes", "sizes"),
    [
        # Client 1 has 20 examples of 60: five batches of the run's four.
        ({"victims": 1}, (5, 4, 20)),
        ({"local_steps": 2, "batch": 1}, (2, 1, 2)),
        ({"local_steps": 4, "batch": 1, "local_epochs": 2}, (4, 1, 2)),
        ({"local_steps": 3, "batch": 1, "local_epochs": 3}, (3, 1, 1)),
        ({"local_steps": 7, "victims": 1}, (7, 4, 20)),  # begins again
    ],
)
def test_sizes_of_an_update(folder, changes, sizes):
    config = from_run.settle(study(folder, upload="update", **changes))
    assert (config.local_steps, config.batch, config.examples) == sizes
    assert from_run.settle(config) == config


# --- what is refused -------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "resnet20"}, "model='resnet20' contradicts run .* 'dense'"),
        ({"data": "photos"}, "data='photos' contradicts .* 'digits'"),
        ({"sites": ("fc",)}, "sites=.*'fc'.* contradicts"),
        ({"lock_init": 0.5}, "lock_init=0.5 contradicts .* 0.0"),
        ({"init": 0.7}, "init=0.7 contradicts .* 0.3"),
        ({"loss": "squared_error"}, "loss='squared_error' contradicts"),
        ({"private_key_size": 8}, "private_key_size=8 contradicts .* 16"),
        ({"image_size": 16}, "image_size=16 contradicts .* 8"),
        ({"split": "test"}, "split='test' contradicts .* 'train'"),
        ({"arms": ("bn-control",)}, "'bn-control' was not trained .* none, keylock"),
        ({"round": 3}, "before round 3 of arm 'none' .* kept are 0, 1, 2"),
        ({"client": 3}, "client=3 does not exist.*clients 0 to 2"),
        ({"victims": 21}, "21 victims of 1 .* client 1 has 20"),
        ({"upload": "update"}, "2 victims of 20 examples .* client 1 has 20"),
        ({"upload": "update", "batch": 21}, "20 examples, less than batch=21"),
        (
            UPDATE | {"local_steps": 3, "local_epochs": 2},
            "local_steps=3 are not local_epochs=2 times",
        ),
        (UPDATE | {"examples": 3}, "examples=3: an update of 2 steps of 1 .* of 2"),
        (UPDATE | {"labels": "given", "label_rule": "counts"}, "labels='recovered'"),
        (UPDATE | {"threat": ("victim_norm=eval",)}, "victim_norm=eval"),
        ({"threat": ("upload=update",)}, "upload=gradient"),
    ],
    ids=str,
)
def test_contradictions_are_refused_by_name(folder, nothing_runs, changes, message):
    with pytest.raises(ValueError, match=message):
        leak(study(folder, **changes))


def test_a_hundred_million_local_steps_are_refused(folder, nothing_runs):
    config = study(
        folder, **UPDATE | {"local_steps": 10**8, "victims": 1}, attack="ig-fedavg"
    )
    with pytest.raises(ValueError, match="[TP]iB .*lower local_steps or restarts"):
        leak(config)


def test_what_the_run_has_may_be_repeated(folder, nothing_runs):
    same = {name: getattr(RUN, name) for name in from_run.SETTLED}
    with pytest.raises(AssertionError, match="the study has begun"):
        leak(study(folder, **same, split="train", arms=("keylock/unit", "none")))


def test_no_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.* is no run of kljax train"):
        leak(study("nowhere"))
    (tmp_path / "config.json").write_text(json.dumps({"job": "leak"}))
    with pytest.raises(ValueError, match="is no run of kljax train"):
        leak(study(str(tmp_path)))


@pytest.mark.parametrize(
    "changes",
    [
        {"round": 1},
        {"client": 1},
        {"upload": "update"},
        {"local_steps": 2},
        {"batch": 2},
        {"client_optimiser": "fresh"},
    ],
    ids=str,
)
def test_options_of_a_run_need_one(changes):
    (name,) = changes
    with pytest.raises(ValueError, match=f"{name}=.*needs from_run"):
        LeakConfig(**changes)
    if name in ("local_steps", "batch", "client_optimiser"):
        with pytest.raises(ValueError, match=f"{name}=.*needs upload='update'"):
            LeakConfig(from_run="somewhere", **changes)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("round", -1),
        ("client", 0.5),
        ("upload", "average"),
        ("local_steps", 0),
        ("local_epochs", 0),
        ("batch", 0),
        ("client_optimiser", "none"),
    ],
)
def test_bad_options_of_a_run_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be"):
        LeakConfig(from_run="somewhere", **{name: value})


# --- on the command line ---------------------------------------------------------


def typed(folder, *options):
    return cli.main(
        [
            *("leak", "--from", folder, "--client", "1", "--victims", "2"),
            *("--steps", "4", "--attack", REVEAL, "--out", "study"),
            *("--layout.kind", "chunked", "--layout.chunk", "2", *options),
        ]
    )


def words(capsys):
    return " ".join(capsys.readouterr().out.split())


def test_a_round_is_attacked_from_the_command_line(folder, capsys):
    assert typed(folder, "--round", "1", "--arms", "none", "keylock/regress_gates") == 0
    said = words(capsys)
    assert "client 1 of run" in said and "before round 1, uploads the gradient" in said
    assert "dense on digits: 2 victims" in said and "4/4" in said
    config = json.loads(pathlib.Path("study/config.json").read_text())
    assert (config["round"], config["client"], config["upload"]) == (1, 1, "gradient")
    assert config["from_run"] == folder
    summary = json.loads(pathlib.Path("study/summary.json").read_text())
    assert set(summary["arms"]) == {"none", "keylock/regress_gates"}
    assert "before round 1" in pathlib.Path("study/summary.md").read_text()
    # A study can be repeated from what its folder says.
    names = {field.name for field in dataclasses.fields(LeakConfig)}
    again = LeakConfig(**{k: v for k, v in config.items() if k in names})
    assert from_run.settle(again) == again


def test_an_update_is_attacked_from_the_command_line(folder, capsys):
    options = "--upload update --local-steps 2 --batch 1 --labels given --round 0"
    assert typed(folder, *options.split(), "--arms", "keylock/regress_gates") == 0
    said = words(capsys)
    assert "an update of 2 local steps, batch 1, kept optimiser" in said
    assert "upload=update" in said and "examples=2" in said


def test_a_round_that_was_not_kept_ends_in_one_line(folder, capsys):
    assert typed(folder, "--round", "7") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("kljax: ") and "kept are 0, 1, 2" in line
    assert not pathlib.Path("study").exists()


@pytest.mark.slow
def test_a_recovery_from_a_whole_update(folder):
    """The attack itself, on one image in two local epochs, before round 0."""
    sizes = {"local_steps": 2, "local_epochs": 2, "batch": 1}
    result = leak(
        study(
            folder,
            upload="update",
            **sizes,
            arms=("none",),
            attack="matching",
            steps=400,
        )
    )
    rows = [row for row in scoring.score_rows(result) if row["arm"] == "none"]
    assert [row["label_accuracy"] for row in rows] == [1.0, 1.0]  # recovered
    assert all(row["matching_loss"] < 1e-3 for row in rows)
    assert np.mean([row["ssim"] for row in rows]) > 0.6


@pytest.mark.slow
def test_a_client_is_observed_at_every_kept_round(folder, gradients):
    """Each observation is that of a study of its round alone."""
    quick = {"attack": "outside_package:reveal"}
    pooled = leak(study(folder, observations=2, **quick))
    single = [views(result) for result in gradients]
    for arm, view in views(pooled).items():
        for number in (0, 1):
            kept = single[number][arm].public
            seen = view.observations.views.public
            seen = jax.tree.map(lambda x, k=number: x[:, k], seen)
            jax.tree.map(np.testing.assert_array_equal, seen, kept)
        first = single[0][arm].grads
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
            view.grads,
            first,
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    (
        ({"observations": 4}, "from round 0 on, the states before rounds 0, 1, 2 "),
        ({"observations": 2, **UPDATE}, "learning rate of run .* drops before round 1"),
    ),
)
def test_rounds_that_cannot_be_pooled_are_refused(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        leak(study(folder, **changes))
