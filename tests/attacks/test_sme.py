"""SME: an update of many steps by one gradient between its ends."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from caught import STEPS as DESCENT
from caught import of_two_epochs, parts_of
from poison import differences, hidden, poisoned
from test_preset_searches import numpy_adam, trajectory
from toys import (
    LOCK,
    locked_update,
    quick_jit,
    random_images,
    random_weights,
    threat,
    toy_model,
)
from toys import setting as locked_setting
from victims import CLASSES, IMAGE_SHAPE, digits, drowned, error_of, filled, ground

from kljax.attacks import Candidate, Protocol, Unknown
from kljax.attacks.objectives import cosine
from kljax.attacks.presets import PRESETS, sme
from kljax.attacks.presets.surrogate import Interpolated, _with_interpolation
from kljax.attacks.secrets import Secret
from kljax.attacks.simulation import closest_surrogate, one_step, surrogate_gradient
from kljax.attacks.simulation.surrogate import SHARES
from kljax.core.types import Private, Public
from kljax.defences import keylock, none
from kljax.federated.clients import local_update
from kljax.models import Dense, from_nnx
from kljax.models.losses import cross_entropy
from kljax.threat import observe
from kljax.threat.observation import LocalSteps

# Two digits, twice through, one at a time.
EXAMPLES, STEPS, RATE = 2, 4, 0.05
KNOWN = {"labels": "known", "upload": "update", "examples": EXAMPLES}
GREY = 0.14  # mean squared error of a grey image on these digits


@functools.cache
def dense():
    return from_nnx(lambda rngs: Dense(CLASSES, image_shape=IMAGE_SHAPE, rngs=rngs))


def here(protocol=True, **facts):
    declared = threat("unit", "given", **{**KNOWN, **facts})
    steps = Protocol(optax.sgd(RATE), STEPS, 1, RATE) if protocol else None
    return ground(declared, protocol=steps, model=dense(), sites=())


@functools.cache
def update(seed=0, steps=STEPS):
    params, stats = random_weights(dense(), seed, scale=0.2)
    training = local_update(
        dense(), cross_entropy, none(), optax.sgd(RATE), steps=steps, batch=1
    )
    public = Public(params)
    images, targets = digits(EXAMPLES)
    state = training.init(public, Private())
    return quick_jit(training.run)(
        jax.random.key(seed),
        0,
        public,
        stats,
        state,
        images,
        np.argmax(targets, axis=-1),
    )


def view_of(truth):
    return observe(here().threat, truth)


# --- the surrogate -----------------------------------------------------------------

GUESS = random_images(EXAMPLES, *IMAGE_SHAPE, seed=5)


@functools.cache
def surrogate():
    setting = here()
    return quick_jit(surrogate_gradient(setting, setting.defence.gates))


def gradient_at(params, images, targets):
    def loss(params):
        out = dense().apply(params, {}, images, train=False)
        return cross_entropy(out.logits, targets)

    return quick_jit(jax.grad(loss))(params)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_it_is_the_gradient_at_the_interpolated_weights(share):
    """Of all examples at once, and downhill as the client went."""
    truth = update()
    view, (_, targets) = view_of(truth), digits(EXAMPLES)
    found, observed = surrogate()(
        view, Candidate(GUESS, targets, Private()), jnp.float32(share)
    )
    first, moved = truth.public.model, truth.sent.model
    trained = {name: first[name] + moved[name] for name in first}
    between = {n: (1 - share) * first[n] + share * trained[n] for n in first}
    wanted = gradient_at(between, GUESS, targets)
    for name in first:
        np.testing.assert_allclose(found.model[name], -wanted[name], atol=1e-5)
        # What a change is measured in: rate x steps.
        unit = RATE * STEPS
        np.testing.assert_allclose(observed.model[name], moved[name] / unit, 1e-5)


def test_where_it_is_taken_counts():
    images, targets = digits(EXAMPLES)
    candidate = Candidate(images, targets, Private())
    ends = [surrogate()(view_of(update()), candidate, a)[0] for a in (0.0, 1.0)]
    gaps = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), *ends)
    assert max(jax.tree.leaves(gaps)) > 1e-3


def test_of_one_step_it_is_the_single_step_match_at_0():
    declared = threat("unit", "given", **(KNOWN | {"upload": "gradient"}))
    setting = ground(declared, model=dense(), sites=())
    images, targets = digits(EXAMPLES)
    candidate = Candidate(images, targets, Private())
    view = view_of(update())
    single, _ = quick_jit(one_step(setting, setting.defence.gates))(view, candidate)
    found, _ = surrogate()(view, candidate, jnp.float32(0))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, -b, atol=1e-6), found, single
    )


@pytest.mark.parametrize("lock_grads", ["shared", "hidden"])
def test_lock_weights_are_put_between_where_their_change_is_shared(lock_grads):
    """And stay what they are where it is not; the change is made up."""
    share, defence = 0.7, keylock(LOCK)
    facts = KNOWN | {"private_key": "known", "lock_weights": "known"}
    declared = threat("known", "given", lock_grads=lock_grads, **facts)
    truth = locked_update(EXAMPLES)._replace(local=LocalSteps(STEPS, 1))
    moved = jax.tree.map(lambda x: 5 * x, truth.lock_grads)
    truth = truth._replace(lock_grads=moved)
    steps = Protocol(optax.sgd(RATE), STEPS, 1, RATE)
    own = locked_setting(declared, defence, protocol=steps)
    images = random_images(EXAMPLES, *truth.inputs.shape[1:], seed=5)
    candidate = Candidate(images, truth.targets, truth.private)
    simulate = quick_jit(surrogate_gradient(own, defence.gates))
    found, observed = simulate(observe(declared, truth), candidate, share)

    def loss(public, lock):
        private = truth.private._replace(trainable=lock)
        out = toy_model().apply(
            public.model,
            truth.stats,
            images,
            gates=defence.gates(public.defence, private),
            train=False,
        )
        return cross_entropy(out.logits, truth.targets)

    def between(start, change, share):
        return jax.tree.map(lambda x, move: x + share * move, start, change)

    def compare(found, wanted, unit=1.0):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b / unit, atol=1e-5),
            found,
            wanted,
        )

    gradient = quick_jit(jax.grad(loss, argnums=(0, 1)))
    public = between(truth.public, truth.sent, share)
    first = truth.private.trainable
    lock = between(first, moved, share)
    of_model, of_lock = gradient(public, lock if lock_grads == "shared" else first)
    if lock_grads == "hidden":
        compare(found, jax.tree.map(jnp.negative, of_model))
        compare(observed, truth.sent, RATE * STEPS)
        return
    compare(found, jax.tree.map(jnp.negative, (of_model, of_lock)))
    compare(observed, (truth.sent, moved), RATE * STEPS)
    elsewhere = gradient(public, first)[0].model  # it counts where the lock is
    assert np.abs(elsewhere["fc/kernel"] - of_model.model["fc/kernel"]).max() > 1e-3


def test_the_closest_surrogate_is_that_with_the_least_distance():
    """At the client's own images; a study holds the attack's loss against its own."""
    setting, (images, targets) = here(), digits(EXAMPLES)
    candidate, view = Candidate(images, targets, Private()), view_of(update())
    distance, gates = cosine(), setting.defence.gates

    @quick_jit
    def closest(broken):
        """Finds the least distance of those above `broken`; others are NaN."""

        def objective(*pair):
            found = distance(*pair)
            return jnp.where(found <= broken, jnp.nan, found)

        return distance(*closest_surrogate(setting, gates, objective)(view, candidate))

    found = float(closest(-1.0))
    along = [
        float(distance(*surrogate()(view, candidate, jnp.float32(share))))
        for share in SHARES
    ]
    assert found == pytest.approx(min(along), abs=1e-6) and max(along) > 1.5 * found
    second = sorted(along)[1]
    assert second > found + 1e-5
    assert float(closest((found + second) / 2)) == pytest.approx(second, abs=1e-6)
    assert PRESETS["sme"].simulation is not None


# --- what it is composed of ----------------------------------------------------------


def test_it_has_the_codes_values():
    """cifar_sme.json and adversary.py, on images standardised by .5 and .25."""
    parts = parts_of("sme", of_two_epochs())
    unknowns = parts["unknowns"]
    (free, share), fixed = unknowns.secret.start(jax.random.key(0), None)
    assert share == 0.5 and unknowns.secret.decode((free, share), fixed).share == 0.5
    for outside, kept in ((-0.1, 0), (0.4, 0.4), (1.1, 1)):
        (_, found) = unknowns.secret.project((free, jnp.float32(outside)))
        assert float(found) == pytest.approx(kept)
    free = np.float32([-9, 1, 9])
    np.testing.assert_allclose(unknowns.inputs.project(free), [-2, 1, 2])
    np.testing.assert_allclose(unknowns.inputs.decode(free, ()), [-1.75, 0.75, 2.75])
    # lamb / 2 x both mean absolute differences of standardised images.
    standard = (GUESS - 0.5) / 0.25
    steps = [np.abs(np.diff(standard, axis=axis)).mean() for axis in (1, 2)]
    candidate = Candidate(jnp.asarray(GUESS), None, None)
    prior = quick_jit(parts["prior"])(view_of(update()), candidate, jnp.zeros(()))
    assert float(prior) == pytest.approx(0.01 * sum(steps) / 2, rel=1e-4)


def falling(rate):
    at = [int(share * DESCENT) for share in (3 / 8, 5 / 8, 7 / 8)]
    return lambda t: rate * 0.1 ** sum(t >= step for step in at)


def test_images_secrets_and_the_interpolation_have_rates_of_their_own():
    optimiser = parts_of("sme", of_two_epochs())["optimiser"]
    first = jnp.array([0.3, -1.0, 2.0])
    places, _, (secret, share) = trajectory(
        optimiser, DESCENT, (first, (), (first, first))
    )
    for found, rate in ((places, 1.0), (secret, 0.05), (share, 1e-3)):
        wanted = numpy_adam(found[0], falling(rate))
        np.testing.assert_allclose(found, wanted, atol=2e-3 * rate + 1e-5)


# --- what it refuses -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"upload": "gradient", "protocol": False}, "take inverting-gradients"),
        ({"upload": "average", "clients": 2}, "average of clients .* ig-fedavg"),
        ({"visible": "layers/0"}, "some are hidden: take ig-fedavg"),
        ({"protocol": False}, "needs the protocol of its steps"),
    ],
)
def test_what_has_no_surrogate_is_refused(facts, message):
    with pytest.raises(ValueError, match=message):
        sme(here(**facts), steps=2, restarts=1)


def test_an_upload_that_is_hidden_in_part_is_refused():
    """As encryption of some entries does, of which no threat model says anything."""
    attack = sme(here(), steps=2, restarts=1)
    view = view_of(update())
    seen = jax.tree.map(lambda x: np.ones(x.shape, bool), view.grads)
    with pytest.raises(ValueError, match="some are hidden"):
        jax.eval_shape(attack, jax.random.key(0), view._replace(visible=seen))


@pytest.mark.parametrize(
    ("name", "value"),
    [("interpolation", -0.1), ("interpolation", 1.1), ("interpolation_rate", -1.0)],
)
def test_numbers_that_are_none_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be"):
        sme(here(), steps=2, restarts=1, **{name: value})


# --- what it finds -------------------------------------------------------------------


@functools.cache
def attack():
    inverted = sme(here(), steps=300, restarts=1, variation=1e-4)
    return quick_jit(lambda truth: inverted(jax.random.key(8), view_of(truth)))


def test_it_finds_what_a_few_small_steps_were_made_on():
    truth = update()
    found = attack()(truth)
    assert error_of(found, truth) < GREY / 20
    assert bool(found.finite) and found.info["secret"] == Private()
    share = float(found.numbers["interpolation"])
    assert 0 <= share <= 1 and share != 0.5


def test_it_fails_where_noise_leaves_nothing():
    truth = update()
    assert error_of(attack()(drowned(truth)), truth) > GREY / 2


def test_a_broken_update_is_a_reported_failure():
    assert not bool(attack()(filled(update(), np.nan)).finite)
    assert not bool(attack()(filled(update(), 0.0)).finite)


def test_what_is_hidden_cannot_change_a_reconstruction():
    truth, facts = update(), vars(here().threat.knowledge)
    assert {"inputs", "new_stats", "before_release"} <= set(hidden(facts))
    assert not differences(attack()(poisoned(truth, facts)), attack()(truth))


def test_a_secret_is_read_and_reported_by_itself():
    parts = parts_of("sme", of_two_epochs())["unknowns"].secret
    value = Interpolated(Private(), jnp.float32(0.2))
    assert parts.read(value, Private()) == value
    part = Unknown(
        lambda rng, view: (2.0, 5.0),
        lambda free, fixed: free,
        penalty=lambda free: free**2,
        report=lambda free, fixed: {"found": free + fixed},
    )
    both = _with_interpolation(Secret(part, None), 0.3).unknown
    free, fixed = both.start(jax.random.key(0), None)
    assert both.penalty(free) == 4 and both.report(free, fixed) == {"found": 7}
    assert parts.penalty is None and parts.report is None
