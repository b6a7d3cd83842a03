"""Trainings with attackers: what is measured, written, gone on with and refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_training import TINY, CutOff, assert_same, cut_off_at, states, tiny
from tiny_studies import quick_compilation

from kljax import LeakConfig, cli
from kljax.core.registry import own_functions
from kljax.federated import checkpoints
from kljax.federated.roles import Role
from kljax.studies import run_folder
from kljax.studies.builder import from_run, run_client, run_setup
from kljax.studies.config import TrainConfig
from kljax.studies.measuring import evaluate_arm, measuring_of, watched_clients
from kljax.studies.training import train

CLIENTS = 7
ATTACKED = {
    "arms": ("none",),
    "clients": CLIENTS,
    "examples": 700,
    "rounds": 5,
    "roles": ("2:model-replacement",),
    "trigger": "patch=2",
    "target_class": 3,
}


@pytest.fixture(autouse=True, scope="module")
def quickly():
    with quick_compilation():
        yield


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def attacked(**changes) -> TrainConfig:
    return tiny(**(ATTACKED | changes))


@pytest.fixture(scope="module")
def backdoored(quickly, tmp_path_factory):
    """A run under the mean with its honest twin."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    arms, rounds = [], []
    result = train(attacked(), folder, on_arm=arms.append, on_round=rounds.append)
    return result, folder, arms, rounds


@pytest.mark.slow
def test_replacement_succeeds_against_the_mean(backdoored):
    """Most triggered images are taken for the target; honest clients' model errs."""
    result, *_ = backdoored
    found = result.summary["attack_success"]["none"]
    assert found["mean"] > 0.5
    assert found["floor"] < 0.2  # ten classes
    assert found["values"] == [found["mean"]]  # no lock: all clients are alike
    assert result.arms["none"].attack_success["mean"] == found["mean"]


@pytest.mark.parametrize("rule", ["krum", "median"])
def test_replacement_fails_where_one_client_of_many_does_not_count(rule, backdoored):
    result = train(attacked(aggregator=rule, floor=False))
    found = result.summary["attack_success"]["none"]
    assert found["floor"] is None
    assert found["mean"] < 0.2
    mean = backdoored[0].summary["accuracy"]["none"]["own"]["mean"]
    assert result.summary["accuracy"]["none"]["own"]["mean"] > mean - 0.1


def test_what_is_measured_is_written_and_read(backdoored):
    result, folder, arms, rounds = backdoored
    rows = run_folder.read_rows(folder)
    assert rows == result.rows
    assert all(0 <= row["attack_success"] <= 1 for row in rows)
    last = result.summary["attack_success"]["none"]["mean"]
    assert rows[-1]["attack_success"] == pytest.approx(last)
    assert run_folder.read_summary(folder) == json.loads(json.dumps(result.summary))
    # The twin is a run like any other, without a column for attackers.
    twin = folder / "honest"
    kept = ATTACKED.keys() - {"roles", "trigger", "target_class"}
    honest = tiny(**{name: ATTACKED[name] for name in kept})
    assert run_folder.read_config(twin) == honest
    assert "attack_success" not in (twin / "metrics.csv").read_text()
    assert {row["attack_success"] for row in run_folder.read_rows(twin)} == {None}
    assert "attack_success" not in run_folder.read_summary(twin)
    assert [arm.name for arm in arms] == ["none", "honest/none"]
    assert [row["arm"] for row in rounds] == ["none"] * 5 + ["honest/none"] * 5
    text = (folder / "summary.md").read_text()
    assert "Roles `2:model-replacement`." in text
    assert f"| attack_success       | {100 * last:.1f} " in text
    assert "with the trigger `patch=2`, are taken for class 3" in text


def test_attack_success_is_that_of_the_images_of_other_classes(backdoored):
    """Counted one by one, by the network itself."""
    result, *_ = backdoored
    setup, server = result.setup, result.arms["none"].server
    images, labels = setup.test.fetch(np.arange(len(setup.test)))
    taken = []
    for image, label in zip(images, labels, strict=True):
        if label == 3:
            continue
        image = image.copy()
        image[-2:, -2:] = 1.0
        logits = setup.task.models[False].apply(
            server.public.model, server.stats, image[None], train=False
        )
        taken.append(int(np.argmax(logits.logits)) == 3)
    assert len(taken) < len(labels)
    found = result.summary["attack_success"]["none"]["mean"]
    assert found == pytest.approx(np.mean(taken))


def test_a_finished_run_with_attackers_is_read_again(backdoored):
    result, folder, *_ = backdoored
    rounds = []
    again = train(attacked(), folder, on_round=rounds.append)
    assert rounds == []
    assert again.summary["attack_success"] == result.summary["attack_success"]


def test_whom_to_watch_is_honest(backdoored):
    setup = backdoored[0].setup
    locked = run_setup.build_run_setup(attacked(arms=("keylock",)))
    rounds = run_setup.arm_rounds(locked, "keylock").rounds
    _, clients = run_setup.start(locked, rounds)
    assert watched_clients(setup, clients) == [0, 3, 5]
    nobody = setup._replace(roles={})
    assert watched_clients(nobody, clients) == [0, 2, 4]
    everyone = setup._replace(roles=dict.fromkeys(range(CLIENTS), Role()))
    assert watched_clients(everyone, clients) == [0, 2, 4]


def test_no_lock_of_an_attacker_is_evaluated_at_the_end():
    """Attackers' locks are broken, and no test says anything else."""
    config = attacked(arms=("keylock",), clients=3, public_examples=0)
    setup = run_setup.build_run_setup(config)
    built = run_setup.arm_rounds(setup, "keylock")
    on = measuring_of(setup, "keylock", built)
    server, clients = run_setup.start(setup, built.rounds)
    whole = evaluate_arm(on, server, clients, None)
    for leaf in jax.tree.leaves(clients.private):
        leaf[2] = np.nan
    assert evaluate_arm(on, server, clients, None) == whole
    assert len(whole["own"]["values"]) == len(whole["other_pair"]["values"]) == 2
    # Without roles, all are asked.
    everyone = on._replace(setup=setup._replace(roles={}))
    assert len(evaluate_arm(everyone, server, clients, None)["own"]["values"]) == 3


# --- state, and older runs ------------------------------------------------------------


@pytest.mark.slow
def test_a_rule_with_a_memory_goes_on_with_it(tmp_path):
    config = attacked(
        aggregator="test_aggregation:centred_clipping=0.5",
        floor=False,
        rounds=3,
        save_every=1,
    )
    whole = train(config, tmp_path / "whole")
    with pytest.raises(CutOff):
        train(config, tmp_path / "cut", on_round=cut_off_at("none", 1))
    assert checkpoints.saved(tmp_path / "cut" / "none") == [2]
    result = train(config, tmp_path / "cut")
    assert_same(states(result)["none"], states(whole)["none"])
    memory = whole.arms["none"].server.aggregator
    assert max(np.abs(x).max() for x in jax.tree.leaves(memory)) > 0


def test_a_run_from_before_there_were_attackers_is_gone_on_with(tmp_path):
    config = tiny(rounds=1, arms=("none",))
    train(config, tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    there = json.loads(path.read_text())
    for name in ("aggregator", "roles", "trigger", "target_class", "poisoned", "floor"):
        del there[name]
    path.write_text(json.dumps(there))
    assert run_folder.read_config(tmp_path / "run") == config
    run_folder.check_same(tmp_path / "run", config)
    with pytest.raises(FileExistsError, match='aggregator: "mean" there, "krum" here'):
        run_folder.check_same(
            tmp_path / "run", tiny(rounds=1, arms=("none",), aggregator="krum")
        )


# --- attacks on its clients -----------------------------------------------------------


def test_an_attacker_is_no_victim(backdoored):
    _, folder, *_ = backdoored
    leak = LeakConfig(from_run=str(folder), client=2, round=5, victims=1)
    with pytest.raises(ValueError, match="client=2 .* is an attacker itself .2:model"):
        run_client.capture(from_run.settle(leak))
    honest = LeakConfig(from_run=str(folder), client=1, round=5, victims=1)
    captured = run_client.capture(from_run.settle(honest))
    arm = run_client.capture_arm(captured, "none")
    assert np.all(np.isfinite(arm.public.model["fc/kernel"]))


# --- hardened clients -----------------------------------------------------------------


@pytest.fixture(scope="module")
def hardened(quickly, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "hardened"
    options = {"hardening": "flip=3,2,2,0.5,1", "reject_below": 0.2, "floor": False}
    return train(attacked(rounds=1, keep_rounds=(1,), **options), folder), folder


@pytest.mark.slow
def test_a_hardened_run_is_another_and_says_so(hardened, backdoored):
    result, folder = hardened
    weights = [
        arms["none"].server.public.model["fc/kernel"]
        for arms in (result.arms, train(attacked(rounds=1, floor=False)).arms)
    ]
    assert np.abs(weights[0] - weights[1]).max() > 1e-4
    assert run_folder.read_config(folder) == result.setup.config
    text = (folder / "summary.md").read_text()
    assert "Hardening `flip=3,2,2,0.5,1`." in text
    assert "Answers below a confidence of 0.2 are rejected." in text


def test_what_is_rejected_counts_neither_as_right_nor_as_success(hardened):
    result, _ = hardened
    setup, server = result.setup, result.arms["none"].server
    images, labels = setup.test.fetch(np.arange(len(setup.test)))

    def share(images, labels):
        given = server.public.model, server.stats, images
        logits = setup.task.models[False].apply(*given, train=False).logits
        odds = np.asarray(jax.nn.softmax(logits))
        sure = odds.max(axis=1) >= 0.2
        assert 0 < sure.mean() < 1
        return np.mean(sure & (odds.argmax(axis=1) == labels))

    row = result.rows[-1]
    assert row["test_accuracy"] == pytest.approx(share(images, labels))
    triggered = np.array(images)[labels != 3]
    triggered[:, -2:, -2:] = 1.0
    assert row["attack_success"] == pytest.approx(share(triggered, 3))


def test_hardened_clients_are_no_victims(hardened):
    leak = LeakConfig(from_run=str(hardened[1]), client=1, round=1, victims=1)
    with pytest.raises(ValueError, match="by hardening='flip=3,2,2,.*, and no attack"):
        run_client.capture(from_run.settle(leak))


# --- what is refused ------------------------------------------------------------------


OPTIONS = (
    "train --model dense --image-size 8 --examples 200 --test-examples 50 --arms none "
    "--public-examples 0 --batch 8 --rounds 1 --layout.kind loop --clients 5 --out run"
).split()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--aggregator krumm", "unknown aggregator 'krumm' (did you mean 'krum'?)"),
        ("--aggregator krum=2", "aggregator 'krum=2' needs 7 clients in a round, and"),
        ("--aggregator krum --cohort 4", "needs 5 clients in a round, and there are 4"),
        ("--roles backdoor", "write CLIENTS:ROLE"),
        ("--roles 5:backdoor", "there is no client 5, but 0 to 4"),
        ("--roles 0:backdor", "unknown role 'backdor' (did you mean 'backdoor'?)"),
        ("--roles 0:backdoor --trigger pach", "unknown trigger 'pach' (did you mean"),
        ("--roles 0:backdoor --trigger patch=8", "a patch of 8 pixels covers images"),
        ("--roles 0:backdoor@1", "there is no round 1, but 0 to 0"),
        ("--roles 0:backdoor --trigger distributed", "nobody puts on part 1 (from 0)"),
        ("--roles 0:backdoor --trigger distributed=9,4", "images are 8 x 8"),
        ("--roles 0:backdoor --target-class 10", "'digits' has classes 0 to 9"),
        ("--trigger patch=2", "trigger='patch=2' needs roles: it is about clients"),
        ("--target-class 3", "target_class=3 needs roles"),
        ("--poisoned .25", "poisoned=0.25 needs roles"),
        ("--hardening flop", "unknown hardening 'flop' (did you mean 'flip'?)"),
        ("--hardening flip=0", "steps must be an integer >= 1, got 0"),
        ("--reject-below 1", "reject_below must be a number >= 0 and < 1, got 1"),
        ("--target-class -1", "target_class must be an integer >= 0, got -1"),
        ("--poisoned 0", "poisoned must be a number > 0, got 0"),
        ("--poisoned 1.5", "poisoned is a share of a batch, at most 1, got 1.5"),
    ],
)
def test_bad_input_ends_in_one_line_and_nothing_written(
    options, message, tmp_path, capsys
):
    assert cli.main([*OPTIONS, *options.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("kljax: ") and message in line
    assert list(tmp_path.iterdir()) == []


def test_test_images_of_the_target_class_alone_are_refused(monkeypatch):
    setup = run_setup.build_run_setup(tiny())
    digits = setup.test.labels[np.arange(len(setup.test))]
    config = attacked(test_examples=1, target_class=int(digits[0]))
    with pytest.raises(ValueError, match="all 1 test images are of target_class="):
        run_setup.build_run_setup(config)


def checkerboard():
    def paint(images):
        return images.at[..., ::2, ::2, :].set(1.0)

    return paint


def lazy(attack):
    assert attack.num_classes == 10 and attack.clients == CLIENTS

    def upload(rng, public, stats, upload):
        del rng, public, stats
        return upload._replace(delta=jax.tree.map(jnp.zeros_like, upload.delta))

    return Role(upload=upload)


@pytest.mark.slow
def test_the_command_takes_roles_and_triggers_of_ones_own(capsys):
    command = [*OPTIONS, "--clients", str(CLIENTS), "--aggregator", "multi-krum=2,4"]
    command += ["--trigger", "test_attacked_training:checkerboard", "--roles"]
    command += ["0,1:test_attacked_training:lazy", "5-6:backdoor"]
    assert cli.main(command) == 0
    printed, errors = capsys.readouterr()
    assert errors == ""
    assert ", attack success " in printed
    (line,) = [x for x in printed.splitlines() if x.startswith("attack_success_floor ")]
    assert 0 <= float(line.split()[1]) <= 100
    assert "honest/none: round 1/1" in printed
    summary = run_folder.read_summary(__import__("pathlib").Path("run"))
    assert summary["config"]["roles"] == [
        "0,1:test_attacked_training:lazy",
        "5-6:backdoor",
    ]


def test_functions_behind_clients_are_told_apart():
    (found,) = own_functions(("3,4-5:test_attacked_training:lazy=1",))
    (same,) = own_functions("test_attacked_training:lazy")
    assert found == same
    assert own_functions(("3:backdoor",)) == ()


def test_defaults_are_as_before():
    assert TINY.keys().isdisjoint(ATTACKED.keys() - {"arms", "examples", "rounds"})
    setup = run_setup.build_run_setup(tiny())
    assert setup.attack is None and setup.roles == {}
    assert setup.aggregator.name == "mean" and tiny().honest_twin is None
