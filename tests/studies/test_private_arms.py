"""Arms with differential privacy: what is refused, and the epsilon of rows."""

import sys

import jax
import numpy as np
import pytest
from tiny_studies import scored, sites_of, study, tiny

from kljax.defences import Mechanism
from kljax.defences.accounting import epsilon
from kljax.defences.arms import parse_arm
from kljax.studies import run_folder
from kljax.studies.builder.privacy import (
    check_trained,
    epsilon_by_round,
    epsilon_of_upload,
)
from kljax.studies.builder.run_setup import (
    batches_of,
    build_run_setup,
    cohort_of,
    local_steps,
)
from kljax.studies.builder.study import build_study
from kljax.studies.config import TrainConfig
from kljax.studies.training import train

dp_accounting = pytest.importorskip("dp_accounting", reason="needs kljax[dp]")

TRAINING = {
    "model": "dense",
    "image_size": 8,
    "examples": 120,
    "test_examples": 20,
    "public_examples": 0,
    "clients": 4,
    "batch": 8,
    "rounds": 5,
}
EVAL = ("victim_norm=eval", "attacker_norm=eval")


def prepared(**changes):
    return build_run_setup(TrainConfig(**(TRAINING | changes)))


def gaussian(multiplier, releases):
    """Composed by another accountant of dp-accounting's, in as many events."""
    accountant = dp_accounting.pld.PLDAccountant(
        dp_accounting.NeighboringRelation.REPLACE_SPECIAL
    )
    accountant.compose(dp_accounting.GaussianDpEvent(multiplier), int(releases))
    return pytest.approx(accountant.get_epsilon(1e-5), rel=1e-3)


# --- what is refused -------------------------------------------------------------


# LeNet with batch norm, as the control has it, and as a lock brings it along.
NORMED = "bn-control+dp-sgd=1,1"
LOCKED = "keylock+dp-sgd=1,1/known"


@pytest.mark.parametrize(
    ("arm", "changes", "message"),
    (
        (NORMED, {"model": "lenet"}, "norm layers in train mode"),
        (LOCKED, {"model": "lenet"}, "norm layers .*victim_norm=eval"),
        (
            NORMED,
            {"model": "lenet", "threat": (*EVAL, "stats=visible")},
            "norm layers",
        ),
        (LOCKED, {"threat": ("lock_grads=shared",)}, "lock_grads=hidden"),
    ),
)
def test_what_breaks_the_guarantee_of_an_upload_is_refused_by_name(
    arm, changes, message
):
    with pytest.raises(ValueError, match=message) as caught:
        build_study(tiny(arms=(arm,), **changes))
    assert repr(arm) in str(caught.value)


def test_norms_in_eval_mode_and_clients_as_units_are_not_refused():
    build_study(tiny(model="lenet", arms=(NORMED,), threat=EVAL))
    build_study(tiny(model="lenet", arms=("bn-control+dp-fedavg=1,1",)))


@pytest.mark.parametrize(
    ("changes", "message"),
    (
        ({"model": "lenet", "arms": (NORMED,)}, "norm layers in train mode"),
        ({"arms": ("keylock+dp-sgd=1,1",)}, "trained on gradients that are neither"),
        ({"batch": 64}, "30 examples, fewer than batch=64"),
        (
            {"aggregator": "fedboosting"},
            "'fedboosting' needs .*loss.* no epsilon holds",
        ),
        ({"aggregator": "fedboosting-accuracy"}, "accuracy.* no epsilon holds"),
        ({"hardening": "flip=1,1"}, "'flip=1,1' an example changes what others"),
    ),
)
def test_what_breaks_the_guarantee_of_a_training_is_refused_by_name(changes, message):
    changes = {"arms": ("none", "dp-sgd=1,1")} | changes
    setup, name = prepared(**changes), changes["arms"][-1]
    with pytest.raises(ValueError, match=message) as caught:
        check_trained(setup, name)
    assert repr(name) in str(caught.value)
    if "none" in setup.arms:
        check_trained(setup, "none")
    # Before anything is computed.
    with pytest.raises(ValueError, match=message):
        train(setup.config)


@pytest.mark.parametrize(
    "rule",
    ({"aggregator": "median"}, {"aggregator": "fltrust", "public_examples": 10}),
)
def test_rules_of_uploads_and_of_public_examples_are_not_refused(rule):
    check_trained(prepared(arms=("dp-sgd=1,1",), **rule), "dp-sgd=1,1")


def test_a_client_may_train_a_lock_and_repeat_an_example():
    arm = "keylock+dp-fedavg@update=1,1"
    check_trained(prepared(arms=(arm,), batch=64), arm)


def test_bad_deltas_and_a_missing_accountant_are_named(monkeypatch):
    for delta in (0.0, 1.0, -1.0, float("nan")):
        for make in (tiny, lambda **o: TrainConfig(**(TRAINING | o))):
            with pytest.raises(ValueError, match="delta must be a number > 0 and < 1"):
                make(delta=delta)
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(ImportError, match=r"kljax\[dp\]"):
        build_study(tiny(arms=("dp-sgd=1,1",)))
    with pytest.raises(ImportError, match=r"kljax\[dp\]"):
        check_trained(prepared(arms=("dp-sgd=1,1",)), "dp-sgd=1,1")
    build_study(tiny(arms=("none",)))


# --- rows of attacks -------------------------------------------------------------


@pytest.mark.slow
def test_rows_of_private_arms_alone_have_an_epsilon():
    arms = ("none", "dp-sgd=0.1,2")
    options = {"examples": 2, "victims": 2, "steps": 2, "delta": 1e-6}
    result = study(arms=arms, **options)
    rows = {arm: [row for row in scored(result) if row["arm"] == arm] for arm in arms}
    wanted = epsilon(Mechanism(2.0, "example", "gradients"), 1, 1e-6)
    assert [(row["epsilon"], row["delta"]) for row in rows["none"]] == [
        (None, None)
    ] * 4
    for row in rows["dp-sgd=0.1,2"]:
        assert row["epsilon"] == wanted and row["delta"] == 1e-6
        # Every example is clipped in the replay, too: what is left is the noise.
        assert row["replay_is_exact"]
    floors = [row for row in scored(result) if row["arm"].startswith("floor/")]
    assert {row["epsilon"] for row in floors} == {None}


@pytest.mark.parametrize(("unit", "releases"), (("client", 4), ("example", 1)))
def test_gradients_that_a_client_sent_before_count_for_the_client(unit, releases):
    """They are of other examples, and the attacker has them."""
    private = {"client": "dp-fedavg=1,2", "example": "dp-sgd=1,2"}[unit]
    config = tiny(arms=(private,), earlier=3)
    arm = parse_arm(private, sites_of("layers/0"), {})
    assert arm.defence.mechanism.unit == unit
    assert epsilon_of_upload(config, arm) == gaussian(2.0, releases)


@pytest.mark.slow
def test_the_likelihood_at_the_truth_of_a_batch_is_that_of_the_noise():
    arm = "dp-sgd=0.1,2"
    result = study(arms=(arm,), attack="likelihood", examples=3, steps=2)
    kernels = jax.eval_shape(
        build_study(result.config).task.models[False].init, jax.random.key(0)
    )[0]
    entries = sum(x.size for x in jax.tree.leaves(kernels))
    for row in scored(result):
        if row["arm"] == arm:
            assert row["matching_loss_at_truth"] == pytest.approx(entries / 2, rel=0.1)


# --- rounds ----------------------------------------------------------------------


def test_in_an_epoch_no_example_is_in_two_batches():
    """What the accountant takes for one release per epoch."""
    setup = prepared(arms=("dp-sgd=1,1",), local_epochs=2)
    (batches, _) = batches_of(setup, 3)(np.arange(4))
    for images, valid, own in zip(
        batches.inputs, batches.valid, setup.partition, strict=True
    ):
        steps = local_steps(setup.config, len(own))
        assert valid.sum() == steps == 2 * (len(own) // 8)
        for epoch in np.split(np.asarray(images)[:steps], 2):
            flat = epoch.reshape(-1, epoch[0, 0].size)
            assert len(np.unique(flat, axis=0)) == len(flat)


@pytest.mark.parametrize(
    ("arm", "changes", "in_a_round"),
    (
        ("dp-sgd=1,2", {}, 1),
        ("dp-sgd=1,2", {"local_epochs": 3}, 3),
        # 30 examples make 3 steps an epoch: the fifth step begins the second.
        ("dp-sgd=1,2", {"local_epochs": 3, "local_steps": 5}, 2),
        ("dp-fedavg=1,2", {"local_epochs": 3, "local_steps": 5}, 5),
        ("dp-fedavg@update=1,2", {"local_epochs": 3}, 1),
    ),
)
def test_epsilon_counts_what_the_busiest_client_has_released(arm, changes, in_a_round):
    setup = prepared(arms=(arm, "none"), **changes)
    after = epsilon_by_round(setup, arm)
    for rounds in (0, 1, 2, 5):
        found = after(rounds)
        assert found == (gaussian(2.0, rounds * in_a_round) if rounds else 0)
    assert epsilon_by_round(setup, "none")(5) is None


def test_a_client_outside_of_the_cohort_releases_nothing():
    setup = prepared(arms=("dp-sgd=1,2",), cohort=2)
    times = np.zeros(4, int)
    for number in range(5):
        times[cohort_of(setup.config, number)] += 1
    assert times.max() < 5  # no client is in all rounds
    assert epsilon_by_round(setup, "dp-sgd=1,2")(5) == gaussian(2.0, times.max())


def rows_of(epsilons):
    row = dict.fromkeys(run_folder.COLUMNS, 1) | {"arm": "dp-sgd", "excluded": ()}
    return [row | {"round": n, "epsilon": e} for n, e in enumerate(epsilons)]


def test_rows_of_rounds_keep_their_epsilon_and_older_ones_have_none(tmp_path):
    for epsilons in ([1.25, 2.5], [None, 2.5], [None, None]):
        run_folder.write_rows(tmp_path, rows_of(epsilons))
        assert [r["epsilon"] for r in run_folder.read_rows(tmp_path)] == epsilons
    # Without private arms there is no such column.
    assert "epsilon" not in (tmp_path / "metrics.csv").read_text()


def test_a_summary_has_a_line_of_epsilon_where_an_arm_is_private():
    one = {"own": {"mean": 0.5, "std": 0.0, "values": [0.5]}}
    accuracy = {"none": one, "dp-sgd=1,2": one}

    def lines(epsilons):
        made = run_folder.summarise({}, [], accuracy, None, epsilon=epsilons)
        return run_folder.table(made)[1]

    private = {"none": None, "dp-sgd=1,2": 3.456}
    assert lines(private)[-1] == ["epsilon", "-", "3.46"]
    assert len(lines(dict.fromkeys(accuracy))) == len(lines(private)) - 1


@pytest.mark.slow
def test_a_training_says_what_it_has_spent(tmp_path):
    arm = "dp-sgd=1,2"
    config = TrainConfig(**TRAINING | {"arms": (arm, "none"), "rounds": 2})
    result = train(config, tmp_path / "run")
    rows = run_folder.read_rows(tmp_path / "run")
    by_arm = {n: [r["epsilon"] for r in rows if r["arm"] == n] for n in (arm, "none")}
    assert by_arm == {arm: [gaussian(2.0, 1), gaussian(2.0, 2)], "none": [None] * 2}
    assert result.summary["epsilon"] == {arm: by_arm[arm][-1], "none": None}
    text = (tmp_path / "run" / "summary.md").read_text()
    assert "| epsilon" in text and "at delta 1e-05" in text
