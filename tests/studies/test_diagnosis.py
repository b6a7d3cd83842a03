"""What a replay at the truth gives, and what its loss is then due to."""

import functools

import jax
import numpy as np
import optax
import pytest
from tiny_studies import scored, study, tiny
from toys import (
    CLASSES,
    IMAGE_SHAPE,
    LOCK,
    locked_update,
    quick_jit,
    random_images,
    random_private,
    random_weights,
    setting,
    threat,
    toy_model,
)

from kljax.attacks import Candidate, Protocol, replay
from kljax.core.types import Private, Public
from kljax.defences import (
    Defence,
    at_update,
    chain,
    gaussian_noise,
    keylock,
    magnitude_pruning,
    none,
    norm_clipping,
)
from kljax.federated.algorithms import proximal
from kljax.federated.clients import local_update
from kljax.models import LeNet, from_nnx, resnet20
from kljax.models.losses import cross_entropy
from kljax.studies import diagnosis
from kljax.studies.builder.study import build_study
from kljax.studies.diagnosis import replay_is_exact
from kljax.threat import Update, observe

STEPS, BATCH, RATE = 4, 2, 0.1
EXAMPLES = STEPS * BATCH // 2  # gone through twice
PENALTY = proximal(0.5)
LOCKED = keylock(LOCK)
NOISY = chain(LOCKED, gaussian_noise(0.5))
FACTS = {
    "private_key": "known",
    "lock_weights": "known",
    "victim_norm": "train",
    "attacker_norm": "train",
    "upload": "update",
    "examples": EXAMPLES,
}
UPDATE = threat("known", **FACTS)


def optimiser():
    return optax.sgd(RATE, momentum=0.9)


def flipped(rng, images):
    del rng
    return images[:, :, ::-1]


def another_private_key(rng, private):
    return private._replace(secret=jax.random.uniform(rng, private.secret.shape))


def trained(defence: Defence = LOCKED, momentum: float = 0.0, **options) -> Update:
    """Runs a client for some steps, with a momentum of every entry from before."""
    model = toy_model()
    params, stats = random_weights(model)
    received = Public(params)
    training = local_update(
        model, cross_entropy, defence, optimiser(), steps=STEPS, batch=BATCH, **options
    )
    state = training.init(received, random_private())
    kept = jax.tree.map(lambda x: x + momentum, state.optimiser)
    run = quick_jit(functools.partial(training.run, jax.random.key(7), np.int32(3)))
    return run(
        received,
        stats,
        state._replace(optimiser=kept),
        random_images(EXAMPLES, *IMAGE_SHAPE),
        np.arange(EXAMPLES) % CLASSES,
    )


bare = functools.cache(trained)


def replays(update: Update, declared=UPDATE, defence: Defence = LOCKED, penalty=None):
    """Asks whether the attacker's replay at the truth is the client's."""
    protocol = Protocol(optimiser(), STEPS, BATCH, RATE, penalty)
    ground = setting(declared, defence, protocol=protocol)
    view = observe(declared, update)
    exact = quick_jit(functools.partial(replay_is_exact, ground))(update, view)
    return bool(exact)


# --- what was before the release -----------------------------------------------------


RELEASES = {
    "noise": gaussian_noise(0.5),
    "pruning": magnitude_pruning(0.5),
    "clipping": norm_clipping(1e-3),
    "noise of the update": at_update(gaussian_noise(0.5)),
    "pruning of the update": at_update(magnitude_pruning(0.5)),
    "clipping of both": chain(norm_clipping(0.1), at_update(norm_clipping(1e-3))),
}


@pytest.mark.parametrize("transform", RELEASES.values(), ids=RELEASES)
def test_before_release_nothing_was_done_and_all_else_is_the_same(transform):
    plain, changed = bare(), trained(chain(LOCKED, transform))
    sent, before = (jax.tree.leaves(x) for x in (changed.sent, changed.before_release))
    assert any(np.any(one != other) for one, other in zip(sent, before, strict=True))
    for one, other in zip(jax.tree.leaves(plain.sent), before, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", RELEASES)
def test_the_attacker_simulates_what_the_client_does_in_each_step(name):
    """With the truth, but for the noise, that gives the released change itself."""
    defence = chain(LOCKED, RELEASES[name])
    update, protocol = trained(defence), Protocol(optimiser(), STEPS, BATCH, RATE)
    truth = Candidate(update.inputs, update.targets, update.private)
    view = observe(UPDATE, update)
    errors = []
    for simulated in (defence, LOCKED):
        ground = setting(UPDATE, simulated, protocol=protocol)
        replayed = quick_jit(replay(ground, LOCKED.gates))
        found, seen = (
            np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
            for tree in replayed(view, truth)
        )
        errors.append(np.linalg.norm(found - seen) / np.linalg.norm(seen))
    exact, naive = errors
    assert naive > 0.1
    assert exact == naive if "noise" in name else exact < 1e-4


# --- whether the replay is the client's ----------------------------------------------


@pytest.mark.parametrize(
    ("options", "penalty", "exact"),
    [
        ({}, None, True),
        ({"defence": NOISY}, None, True),
        ({"defence": chain(LOCKED, magnitude_pruning(0.9))}, None, True),
        ({"defence": chain(LOCKED, at_update(gaussian_noise(0.5)))}, None, True),
        ({"penalty": PENALTY}, PENALTY, True),
        ({"momentum": 0.5}, None, False),
        ({"momentum": 0.5, "reset_optimiser": True}, None, True),
        ({"momentum": 0.5, "defence": NOISY}, None, False),
        ({"augment": flipped}, None, False),
        ({"penalty": PENALTY}, None, False),
    ],
    ids=(
        "plain",
        "noise in each step",
        "pruning in each step",
        "noise on the update",
        "a penalty the attacker has",
        "kept momentum",
        "momentum begun anew",
        "kept momentum and noise",
        "augmentation",
        "a penalty the attacker has not",
    ),
)
def test_an_update_is_replayed_or_is_not(options, penalty, exact):
    defence = options.get("defence", LOCKED)
    assert replays(trained(**options), defence=defence, penalty=penalty) is exact


def test_lock_weights_trained_under_noise_are_no_error_of_the_replay():
    """What a client shares of its lock has followed the noisy steps."""
    declared = threat("known", lock_grads="shared", **FACTS)
    assert replays(trained(NOISY), declared, defence=NOISY)


def test_another_private_key_is_another_client():
    """One drawn anew, where the update says which it was before."""
    private = random_private()
    other = another_private_key(jax.random.key(1), private)
    update = bare()
    assert not replays(update._replace(private=other))


def test_another_mode_of_the_norm_is_another_gradient():
    update = locked_update(2)  # in eval mode
    broken = jax.tree.map(lambda x: x * np.nan, update.before_release)
    for mode, exact in (("eval", True), ("train", False)):
        declared = threat("unit", victim_norm="eval", attacker_norm=mode, examples=2)
        ground = setting(declared, LOCKED)
        ask = quick_jit(functools.partial(replay_is_exact, ground))
        view = observe(declared, update)
        assert bool(ask(update, view)) is exact
        # What is not finite is nobody's replay.
        assert not ask(update._replace(before_release=broken), view)


# Another form of the convolution rounds otherwise, in every layer and step.
@pytest.mark.parametrize(
    ("network", "steps"),
    [
        (LeNet, 8),
        pytest.param(resnet20, 1, marks=pytest.mark.slow),
        pytest.param(resnet20, 4, marks=pytest.mark.slow),
    ],
    ids=("lenet, 8 steps", "resnet20, 1 step", "resnet20, 4 steps"),
)
def test_rounding_is_no_error_of_the_replay(network, steps):
    shape, batch = (16, 16, 3), 4
    examples = steps * batch

    def build(rngs):
        return network(CLASSES, image_shape=shape, rngs=rngs)

    one, other = (from_nnx(build, convolution=form) for form in ("matmul", "lax"))
    params, stats = quick_jit(one.init)(jax.random.key(0))
    descent = optax.sgd(0.05, momentum=0.9)
    training = local_update(
        one, cross_entropy, none(), descent, steps=steps, batch=batch
    )
    received = Public(params)
    update = quick_jit(training.run)(
        jax.random.key(0),
        0,
        received,
        stats,
        training.init(received, Private()),
        random_images(examples, *shape),
        np.arange(examples) % CLASSES,
    )
    facts = {"victim_norm": "train", "attacker_norm": "train", "examples": examples}
    declared = threat("unit", upload="update", **facts)
    ground = setting(
        declared,
        none(),
        model=other,
        protocol=Protocol(descent, steps, batch, 0.05),
    )
    exact = quick_jit(functools.partial(replay_is_exact, ground))
    assert exact(update, observe(declared, update))
    # One example with a tenth less of its contrast is no rounding.
    dimmed = update.inputs.at[0].multiply(0.9)
    assert not exact(update._replace(inputs=dimmed), observe(declared, update))


# --- what follows for the outcome ----------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"model": "outside_package:Normed", "threat": ("attacker_norm=eval",)},
        {"model": "outside_package:Dropping"},
    ],
    ids=("another norm mode", "dropout"),
)
def test_wrong_images_behind_a_wrong_replay_are_unsolved(changes):
    """Whatever is found has a smaller loss than the truth."""
    rows = scored(study(victims=6, steps=100, init=0, classifier="head", **changes))
    mine = [row for row in rows if row["arm"] == "none"]
    for row in mine:
        assert row["replay_is_exact"] is False
        assert row["matching_loss"] < row["matching_loss_at_truth"]
        assert row["matching_loss_floor"] < row["matching_loss_at_truth"]
    outcomes = [row["outcome"] for row in mine]
    assert "unsolved" in outcomes and set(outcomes) <= {"unsolved", "recovered"}


@pytest.mark.slow
def test_noise_is_no_error_of_the_replay():
    """A wrong image that matches as well as the truth does is what noise makes."""
    result = study(steps=200, victims=2, arms=("gaussian-noise=10",))
    for row in scored(result):
        if row["arm"].startswith("floor"):
            continue
        assert row["replay_is_exact"] is True
        assert row["matching_loss"] < row["matching_loss_at_truth"]
        assert row["outcome"] == "ambiguous"


def test_what_was_replayed_is_not_traced_again(monkeypatch):
    replays = []

    def counted(*args):
        replays.append(args)
        return replay(*args)

    monkeypatch.setattr(diagnosis, "replay", counted)
    arms = {"none": 1, "keylock/known": 1, "gaussian-noise=0.1": 2}
    for attack in build_study(tiny(arms=tuple(arms), victims=1)).attacks:
        replays.clear()
        drawn = []
        for draw in attack.client.draws:
            drawn.append(jax.eval_shape(jax.vmap(draw), attack.inputs[0], *drawn))
        jax.eval_shape(jax.vmap(attack.attack_one), *drawn, *attack.inputs)
        assert len(replays) == arms[attack.arm.name], attack.arm.name


def test_an_attack_that_replays_nothing_says_nothing_of_it():
    rows = scored(study(attack="outside_package:reveal", optimiser=None))
    assert {row["replay_is_exact"] for row in rows} == {None}
