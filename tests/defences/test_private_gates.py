"""Scales and shifts that a client keeps: private norms, passports."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from poison import differences, poisoned
from tiny_studies import sites_of, tiny
from toys import (
    CLASSES,
    IMAGE_SHAPE,
    SITES,
    WIDTHS,
    quick_jit,
    random_images,
    random_weights,
    setting_of,
    toy_model,
)

from kljax import defences, threat
from kljax.attacks import Candidate, Task
from kljax.attacks.optimisers import adam, lbfgs
from kljax.attacks.presets import matching
from kljax.attacks.secrets import secret_of
from kljax.attacks.simulation import replay
from kljax.core.inputs import images_of
from kljax.core.targets import classes_of
from kljax.core.types import Gate, Private, Public
from kljax.defences.arms import parse_arm, parse_training_arm
from kljax.federated import clients
from kljax.models.losses import cross_entropy
from kljax.studies.builder.attacker import assume_defence
from kljax.studies.builder.study import build_study

FEDBN = defences.private_norms(SITES, WIDTHS)
FEDPASS = defences.gates_by_passports(SITES, WIDTHS, size=5)


def trained(defence, seed=3):
    """Makes parts of a client that has moved away from where everybody starts."""
    params, _ = random_weights(toy_model())
    public, private = defence.init(jax.random.key(seed), params)
    if jax.tree.leaves(private.trainable):
        generator = np.random.default_rng(seed)
        own = {
            site: Gate(
                np.exp(generator.normal(size=width)).astype(np.float32),
                generator.normal(size=width).astype(np.float32),
            )
            for site, width in zip(SITES, WIDTHS, strict=True)
        }
        private = private._replace(trainable=own)
    return public, private


def upload(defence, parts):
    params, stats = random_weights(toy_model())
    public, private = parts
    step = quick_jit(clients.one_step(toy_model(), cross_entropy, defence, train=False))
    images, targets = random_images(1, *IMAGE_SHAPE), np.eye(CLASSES)[:1]
    given = Public(params, public), stats, private, images, targets.astype(np.float32)
    return step(jax.random.key(0), *given)


def setting(strategy, defence, **facts):
    own = {one.name: one for one in defence.strategies}
    declared = threat.least_knowledge(
        threat.Strategy(secret=strategy, labels="given"),
        own,
        victim_norm="eval",
        attacker_norm="eval",
        **facts,
    )
    task = Task(
        toy_model(), cross_entropy, images_of(IMAGE_SHAPE), classes_of(CLASSES), "fc"
    )
    sites = tuple(zip(SITES, WIDTHS, strict=True))
    found = setting_of(task, declared, defence, sites)
    draw = functools.partial(_draw, defence)
    return found._replace(defence=found.defence._replace(draw_gates=draw))


def _draw(defence, rng):
    return dict(defence.gates(*defence.init(rng, {})))


def loss_at_truth(strategy, defence, update):
    ground = setting(strategy, defence)
    secret = secret_of(ground)
    view = threat.observe(ground.threat, update)
    free, fixed = secret.unknown.start(jax.random.key(7), view)
    guess = secret.unknown.decode(free, fixed)
    candidate = Candidate(update.inputs, update.targets, guess)
    simulated, observed = replay(ground, secret.gates)(view, candidate)
    apart = jax.tree.map(jnp.subtract, simulated, observed)
    return float(optax.tree.norm(apart) / optax.tree.norm(observed))


# --- what leaves the client, and what stays --------------------------------------


def test_private_norms_start_where_they_change_nothing_and_train_alone():
    params, stats = random_weights(toy_model())
    public, private = FEDBN.init(jax.random.key(0), params)
    gates = FEDBN.gates(public, private)
    images = random_images(2, *IMAGE_SHAPE)
    apply = functools.partial(toy_model().apply, params, stats, images, train=False)
    np.testing.assert_array_equal(apply(gates=gates).logits, apply().logits)
    training = clients.local_training(toy_model(), cross_entropy, FEDBN, optax.sgd(0.5))
    received = Public(params, public)
    batches = clients.Batches(images[None], np.array([[0, 1]]), np.array([True]))
    sent, kept, _ = quick_jit(training.run)(
        jax.random.key(1), 0, received, stats, training.init(received, private), batches
    )
    moved = kept.private.trainable[SITES[0]]
    assert np.all(moved.scale != 1) and np.all(moved.shift != 0)
    # Of what moved nothing is sent.
    assert sent.delta.model.keys() == params.keys()
    assert not jax.tree.leaves(sent.delta.defence)


def test_passports_make_gates_by_public_weights():
    public, private = trained(FEDPASS)
    gate, weights = FEDPASS.gates(public, private)["norm"], np.asarray(public["norm"])
    for made, passport in zip(gate, private.secret["norm"], strict=True):
        np.testing.assert_allclose(
            made, np.asarray(passport) @ weights / np.sqrt(5), rtol=1e-5
        )
    update = upload(FEDPASS, (public, private))
    sent = np.asarray(update.sent.defence["norm"], np.float64)  # [K, C]
    assert not jax.tree.leaves(update.lock_grads)
    # What is sent of the weights spans the plane of the passports, as documented.
    plane = np.linalg.svd(sent)[0][:, :2]
    for passport in private.secret["norm"]:
        left = passport - plane @ (plane.T @ passport)
        assert np.linalg.norm(left) < 1e-3 * np.linalg.norm(passport)


@pytest.mark.parametrize("defence", (FEDBN, FEDPASS), ids=("fedbn", "fedpass"))
def test_without_what_is_private_there_are_no_gates(defence):
    public, _ = trained(defence)
    assert defence.gates(public, Private()) == {}


# --- the attackers ---------------------------------------------------------------


def test_passports_are_found_in_the_plane_of_what_is_sent():
    """Four numbers of a site explain all that is sent, of its weights, too."""
    public, private = trained(FEDPASS)
    update = upload(FEDPASS, (public, private))
    ground = setting("regress_passports", FEDPASS)
    secret = secret_of(ground)
    view = threat.observe(ground.threat, update)
    free, fixed = secret.unknown.start(jax.random.key(7), view)
    assert {site: one.shape for site, one in free.items()} == {"norm": (2, 2)}
    own = np.stack(private.secret["norm"])
    found = {"norm": jnp.asarray(own @ fixed["norm"] / np.sqrt(5 / 2))}
    guess = secret.unknown.decode(found, fixed)
    np.testing.assert_allclose(np.stack(guess.secret["norm"]), own, atol=1e-3)
    candidate = Candidate(update.inputs, update.targets, guess)
    simulated, observed = replay(ground, secret.gates)(view, candidate)
    assert jax.tree.leaves(observed.defence)  # of the weights, too
    apart = jax.tree.map(jnp.subtract, simulated, observed)
    assert optax.tree.norm(apart) < 1e-3 * optax.tree.norm(observed)
    # Drawn passports are as long as a client's are on average.
    starts = [secret.unknown.start(jax.random.key(i), view)[0] for i in range(64)]
    drawn = [secret.unknown.decode(one, fixed).secret["norm"].scale for one in starts]
    assert np.isclose(np.mean(np.square(drawn)), 1, atol=0.3)


def test_gates_that_are_free_are_not_held_against_the_weights():
    """Nothing is simulated of W; a constant would stand in every loss."""
    update = upload(FEDPASS, trained(FEDPASS))
    ground = setting("regress_gates", FEDPASS)
    secret = secret_of(ground)
    view = threat.observe(ground.threat, update)
    guess = secret.unknown.decode(*secret.unknown.start(jax.random.key(7), view))
    candidate = Candidate(update.inputs, update.targets, guess)
    _, observed = replay(ground, secret.gates)(view, candidate)
    assert not jax.tree.leaves(observed.defence) and observed.model


@pytest.mark.parametrize("defence", (FEDBN, FEDPASS), ids=("fedbn", "fedpass"))
def test_only_who_has_the_gates_explains_what_is_sent(defence):
    update = upload(defence, trained(defence))
    assert loss_at_truth("known", defence, update) < 1e-5
    assert loss_at_truth("unit", defence, update) > 0.1


def test_private_norms_hide_nothing_before_they_were_trained():
    params, _ = random_weights(toy_model())
    update = upload(FEDBN, FEDBN.init(jax.random.key(0), params))
    assert loss_at_truth("unit", FEDBN, update) < 1e-6
    # And who looks for the gates begins there.
    assert loss_at_truth("regress_gates", FEDBN, update) < 1e-6


@pytest.mark.parametrize(
    ("defence", "strategy"),
    [
        (defence, strategy)
        for defence in (FEDBN, FEDPASS)
        for strategy in ("known", "unit", "regress_gates")
    ]
    + [(FEDPASS, "regress_passports")],
)
def test_no_strategy_touches_what_is_hidden(defence, strategy):
    update = upload(defence, trained(defence))
    ground = setting(strategy, defence)
    attack = quick_jit(matching(ground, adam(), steps=3, restarts=1))
    knows = ground.threat.knowledge
    facts = {name: getattr(knows, name) for name in ("private_key", "lock_weights")}

    def found(update):
        view = threat.observe(ground.threat, update)
        return attack(jax.random.key(0), view).inputs

    given, blind = found(update), found(poisoned(update, facts | {"labels": "known"}))
    assert np.all(np.isfinite(given)) and not differences(given, blind)


@pytest.mark.slow
def test_who_looks_for_the_gates_too_succeeds_where_unit_gates_fail():
    update = upload(FEDBN, trained(FEDBN))

    def error(strategy):
        ground = setting(strategy, FEDBN)
        attack = matching(ground, lbfgs(), steps=400, restarts=4, variation=0.0)
        view = threat.observe(ground.threat, update)
        found = quick_jit(attack)(jax.random.key(0), view)
        return float(jnp.mean((found.inputs - update.inputs) ** 2))

    grey = float(np.mean((0.5 - update.inputs) ** 2))
    assert error("regress_gates") < 0.01 * grey and error("unit") > 0.3 * grey


# --- the jobs --------------------------------------------------------------------


@pytest.mark.slow
def test_who_looks_for_gates_begins_where_those_of_the_defence_do():
    """And not where a lock's do."""
    sites = sites_of("layers/0")
    for name, ones in (("fedbn", True), ("fedpass", False), ("keylock", False)):
        arm = parse_arm(f"{name}/regress_gates", sites, {})
        assumed = assume_defence(arm, arm.defence, sites, 1, {})
        gate = assumed.draw_gates(jax.random.key(0))["layers/0"]
        assert bool(np.all(gate.scale == 1) and np.all(gate.shift == 0)) is ones


@pytest.mark.parametrize(
    ("arm", "said"),
    (
        ("fedbn=1/unit", "fedbn has no options"),
        ("fedbn", "unknown secret strategy ''.*known, unit, regress_gates, peel"),
        ("fedbn/extract", "unknown secret strategy 'extract'"),
        ("fedpass=0/unit", "size must be a whole number >= 1"),
    ),
)
def test_what_is_wrong_with_an_arm_is_named(arm, said):
    with pytest.raises(ValueError, match=said):
        parse_arm(arm, sites_of("layers/0"), {})


def test_gates_need_a_site_and_widths_that_fit():
    with pytest.raises(ValueError, match="'fedbn' gates layers, and none are named"):
        parse_training_arm("fedbn", sites_of(), {})
    for make in (defences.private_norms, defences.gates_by_passports):
        with pytest.raises(ValueError, match="need as many widths"):
            make(("norm",), ())


def test_both_are_arms_of_a_study():
    arms = ("fedbn/unit", "fedbn/known", "fedpass=8/regress_gates")
    study = build_study(tiny(arms=arms))
    knows = [attack.setting.threat.knowledge for attack in study.attacks]
    assert [k.lock_weights for k in knows] == ["hidden", "known", "hidden"]
    assert {k.private_key for k in knows} == {"hidden"}
