"""Strategies against a lock: what each makes of what it is given."""

import jax
import numpy as np
import optax
import pytest
from toys import (
    IMAGE_SHAPE,
    LOCK,
    SITES,
    WIDTHS,
    locked_update,
    quick_jit,
    random_images,
    random_private,
    random_weights,
    setting,
    threat,
    toy_model,
)

from kljax.attacks import SECRETS, Protocol, live_channels
from kljax.attacks.presets.statistical import DRAWN_SECRETS
from kljax.core.dependence import trace_dependence
from kljax.core.types import Gate, Public
from kljax.defences import keylock
from kljax.federated.clients import one_step
from kljax.models.losses import cross_entropy
from kljax.threat import KEYLOCK_STRATEGIES, observe
from kljax.threat.secrets import OWN_NAMES

DEFENCE = keylock(LOCK)
RNG = jax.random.key(8)

# The least knowledge that each strategy can do with.
LEAST = {
    "unit": {},
    "known": {"private_key": "known", "lock_weights": "known"},
    "extract": {"lock_grads": "shared", "lock_weights": "initial"},
    "fixed_random": {"lock_weights": "initial"},
    "fixed_mean": {"lock_weights": "initial"},
    "regress_private_key": {"lock_weights": "initial"},
    "regress_gates": {},
}
OPTIMISED = {"regress_private_key": (5,), "regress_gates": (3, 3)}  # sizes


def begin(name, rng=RNG, update=None):
    """Starts a strategy: what it optimises, its part of the candidate, its gates."""
    model = threat(name, "joint", examples=2, **LEAST[name])
    secret = SECRETS[name](setting(model, DEFENCE))
    free, fixed = secret.unknown.start(rng, observe(model, update or locked_update(2)))
    part = secret.unknown.decode(free, fixed)
    return free, part, secret.gates((), part)


def gates_from(private_key):
    return LOCK.gates(locked_update(2).private.trainable, private_key)


def assert_close(found, expected, rtol=1e-6):
    assert found.keys() == expected.keys()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol), found, expected
    )


def test_the_table_is_that_of_the_threat_model():
    # What peeling needs is more than this toy has: test_peeling.py.
    assert {*LEAST, "peel"} == set(KEYLOCK_STRATEGIES)
    assert set(SECRETS) == OWN_NAMES


@pytest.mark.parametrize("name", LEAST)
def test_secrets_that_start_from_a_draw_are_listed(name):
    """Whether restarts of a preset that draws no image differ is settled by that."""
    update = locked_update(2)
    drawn = trace_dependence(lambda rng: begin(name, rng, update)[:2], RNG)
    assert drawn.on_argument == (name in DRAWN_SECRETS)


@pytest.mark.parametrize("name", LEAST)
def test_the_least_knowledge_is_enough_and_less_is_illegal(name):
    _, _, gates = begin(name)
    for gate in gates.values():
        assert np.all(np.isfinite(gate.scale)) and np.all(np.isfinite(gate.shift))
    for fact in LEAST[name]:
        with pytest.raises(ValueError, match=f"needs {fact}="):
            threat(name, "joint", **{**LEAST[name], fact: "hidden"})


@pytest.mark.parametrize("name", LEAST)
def test_only_the_regressing_ones_optimise_something(name):
    free, _, _ = begin(name)
    sizes = tuple(leaf.size for leaf in jax.tree.leaves(free))
    assert sizes == OPTIMISED.get(name, ())


@pytest.mark.parametrize("name", LEAST)
def test_gates_are_those_of_the_locked_sites(name):
    _, _, gates = begin(name)
    shapes = {
        site: (gate.scale.shape, gate.shift.shape) for site, gate in gates.items()
    }
    expected = {s: ((w,), (w,)) for s, w in zip(SITES, WIDTHS, strict=True)}
    assert shapes == ({} if name == "unit" else expected)


def test_unit_runs_without_gates():
    assert begin("unit")[2] == {}


def test_known_uses_the_true_gates():
    _, _, gates = begin("known")
    assert_close(gates, gates_from(locked_update(2).private.secret))


def test_extract_equals_known():
    assert_close(begin("extract")[2], begin("known")[2], rtol=1e-5)


def test_weight_decay_does_not_disturb_what_is_extracted():
    """Two steps of a lock whose weights decay, with gradients that are made up."""
    protocol = Protocol(
        optax.chain(optax.add_decayed_weights(0.3), optax.sgd(0.1, momentum=0.9)),
        steps=2,
        batch=1,
        learning_rate=0.1,
    )
    truth = locked_update(2)
    secret, weights = truth.private.secret, truth.private.trainable
    now, memory = weights, protocol.optimiser.init(weights)
    for step in range(2):
        signals = np.random.default_rng(step).normal(size=(2, WIDTHS[0]))
        grads = [
            {
                name: {"kernel": np.outer(secret, signal), "bias": signal}
                for name, signal in zip(("scale", "shift"), signals, strict=True)
            },
            *jax.tree.map(np.ones_like, weights[1:]),
        ]
        moves, memory = protocol.optimiser.update(type(weights)(grads), memory, now)
        now = optax.apply_updates(now, moves)
    change = jax.tree.map(np.subtract, now, weights)
    model = threat("extract", "joint", examples=2, **LEAST["extract"])
    view = observe(model, truth)._replace(lock_grads=change)
    for ground, error in (
        (setting(model, DEFENCE)._replace(protocol=protocol), (0, 1e-4)),
        (setting(model, DEFENCE), (1e-2, np.inf)),  # as if nothing decayed
    ):
        strategy = SECRETS["extract"](ground)
        found = strategy.unknown.decode(*strategy.unknown.start(RNG, view)).secret
        assert error[0] <= np.max(np.abs(found - secret)) < error[1]


def test_fixed_mean_guesses_one_half():
    _, part, gates = begin("fixed_mean")
    np.testing.assert_array_equal(part.secret, np.full(5, 0.5))
    assert_close(gates, gates_from(np.full(5, 0.5, np.float32)))


@pytest.mark.parametrize("name", ("fixed_random", "regress_private_key"))
def test_random_private_keys_depend_on_the_rng_alone(name):
    _, part, gates = begin(name)
    assert part.secret.shape == (5,)
    assert np.all((part.secret >= 0) & (part.secret < 1))
    assert_close(gates, gates_from(part.secret))
    # Another victim, the same rng: the same guess. Another rng: another one.
    other = locked_update(2)._replace(private=random_private(seed=77))
    np.testing.assert_array_equal(begin(name, update=other)[1].secret, part.secret)
    assert np.all(begin(name, jax.random.key(9))[1].secret != part.secret)


def test_initial_lock_weights_are_those_of_round_0():
    drifted = locked_update(2)._replace(
        initial_lock_weights=random_private(seed=6).trainable
    )
    _, part, _ = begin("fixed_mean", update=drifted)
    jax.tree.map(
        np.testing.assert_array_equal, part.trainable, drifted.initial_lock_weights
    )


def regression(**changes):
    """Begins a regression of gates at two sites: secret, what is free, and fixed."""
    model = threat("regress_gates", "joint", examples=2)
    ground = setting(model, DEFENCE, sites=(("norm", 3), ("fc", 3)), **changes)
    view = observe(model, locked_update(2))
    assert view.private_key is None and view.lock_weights is None
    secret = SECRETS["regress_gates"](ground)
    return secret, *secret.unknown.start(RNG, view)


def test_regressed_gates_start_at_the_mean_of_what_locks_have():
    """Gates are drawn afresh; dead scales are left out of the mean."""

    def draw_gates(rng):
        # Scales 2, 4 or dead; shifts 1, 2, 3.
        gate = Gate(np.array([2.0, 4.0, 0.0]), np.array([1.0, 2.0, 3.0]))
        return {"norm": gate, "fc": gate}

    secret, free, fixed = regression(draw_gates=draw_gates)
    gates = secret.gates((), secret.unknown.decode(free, fixed))
    assert gates.keys() == {"norm", "fc"}
    np.testing.assert_allclose(gates["norm"].scale, [3.0] * 3)
    np.testing.assert_allclose(gates["norm"].shift, [2.0] * 3, rtol=1e-6)


def test_a_draw_whose_channels_are_all_dead_says_nothing_of_scales():
    def draw_gates(rng):
        gate = Gate(np.zeros(3), np.array([1.0, 2.0, 6.0]))
        return {"norm": gate, "fc": gate}

    secret, free, fixed = regression(draw_gates=draw_gates)
    gates = secret.gates((), secret.unknown.decode(free, fixed))
    np.testing.assert_allclose(gates["norm"].scale, [1.0] * 3)
    np.testing.assert_allclose(gates["norm"].shift, [3.0] * 3)


def test_one_scale_of_all_draws_is_enough():
    """All others are dead: of 48 numbers one is left, and it is the mean."""
    rngs = jax.random.split(jax.random.fold_in(RNG, 0), 16)
    draws = np.array([jax.random.uniform(rng) for rng in rngs])
    chosen = np.sort(draws)[:2].mean()

    def draw_gates(rng):
        alive = jax.random.uniform(rng) < chosen
        gate = Gate(alive * np.array([0.0, 6.0, 0.0]), np.array([1.0, 2.0, 6.0]))
        return {"norm": gate, "fc": gate}

    secret, free, fixed = regression(draw_gates=draw_gates)
    gates = secret.gates((), secret.unknown.decode(free, fixed))
    np.testing.assert_allclose(gates["norm"].scale, [6.0] * 3, rtol=1e-6)
    np.testing.assert_allclose(gates["norm"].shift, [3.0] * 3, rtol=1e-6)


@pytest.mark.parametrize("signed", (False, True))
def test_draws_are_sixteen_and_independent(signed):
    def draw_gates(rng):
        scale, shift = jax.random.normal(rng, (2, 3))
        gate = Gate(scale if signed else abs(scale), shift)
        return {"norm": gate, "fc": gate}

    draws = [
        draw_gates(rng)["norm"]
        for rng in jax.random.split(jax.random.fold_in(RNG, 0), 16)
    ]
    secret, free, fixed = regression(draw_gates=draw_gates)
    gate = secret.gates((), secret.unknown.decode(free, fixed))["norm"]
    scales, shifts = (np.stack(parts) for parts in zip(*draws, strict=True))
    unit = np.mean(np.abs(scales))
    expected = scales[0] if signed else np.full(3, unit)
    np.testing.assert_allclose(gate.scale, expected, rtol=1e-5)
    np.testing.assert_allclose(gate.shift, np.full(3, np.mean(shifts)), rtol=1e-5)
    # Shifts are measured in the mean size of scales.
    np.testing.assert_allclose(free["norm"].shift, np.mean(shifts) / unit, rtol=1e-5)


def test_regressed_scales_have_signs_where_those_of_locks_have():
    def draw_gates(rng):
        gate = Gate(np.array([2.0, -4.0, 0.0]), np.array([1.0, 2.0, 3.0]))
        return {"norm": gate, "fc": gate}

    secret, free, fixed = regression(draw_gates=draw_gates)
    gates = secret.unknown.decode(free, fixed)
    np.testing.assert_allclose(gates["norm"].scale, [2.0, -4.0, 0.0])
    moved = {site: Gate(-gate.scale, gate.shift) for site, gate in free.items()}
    gates = secret.unknown.decode(moved, fixed)
    np.testing.assert_allclose(gates["norm"].scale, [-2.0, 4.0, 0.0])


def test_regressed_gates_without_anything_known_of_locks():
    secret, free, fixed = regression()
    gates = secret.gates((), secret.unknown.decode(free, fixed))
    # The mean of |N(0, 1)| over 16 draws of 3 channels, sqrt(2 / pi) in the limit.
    np.testing.assert_allclose(np.stack(gates["norm"]), np.sqrt(2 / np.pi), atol=0.35)
    assert not np.array_equal(gates["norm"].scale, gates["fc"].scale)


def test_regressed_scales_stay_positive_and_shifts_are_free():
    secret, free, fixed = regression()
    moved = {site: Gate(*(part - 50.0 for part in gate)) for site, gate in free.items()}
    gates = secret.unknown.decode(moved, fixed)
    assert np.all(gates["norm"].scale > 0) and np.all(gates["norm"].shift < -10)


def test_dead_channels_are_read_off_the_gradient():
    """Scales of 0 in the client's lock, seen by a server without the lock."""
    dead = np.array([False, True, False])
    private = random_private()
    weights = jax.tree.map(np.array, private.trainable)
    weights[0]["scale"]["kernel"][:, dead] = -1.0  # ReLU: dead for everybody
    weights[0]["scale"]["bias"][dead] = -1.0
    private = private._replace(trainable=weights)
    assert np.array_equal(LOCK.gates(weights, private.secret)["norm"].scale == 0, dead)
    update = stepped(private)
    model = threat("regress_gates", "joint", examples=2)
    view = observe(model, update)
    blind = setting(model, DEFENCE)
    assert np.all(live_channels(blind, view)["norm"])
    seeing = setting(model, DEFENCE, feeds=(("norm", "first"),))
    np.testing.assert_array_equal(live_channels(seeing, view)["norm"], ~dead)
    secret = SECRETS["regress_gates"](seeing)
    gates = secret.unknown.decode(*secret.unknown.start(RNG, view))
    np.testing.assert_array_equal(gates["norm"].scale == 0, dead)
    assert np.all(gates["norm"].shift != 0)
    # Noise hides them: then all channels count as live.
    noisy = jax.tree.map(lambda leaf: leaf + 1e-6, view.grads)
    noisy = live_channels(seeing, view._replace(grads=noisy))
    assert np.all(noisy["norm"])


def stepped(private):
    model = toy_model()
    return quick_jit(one_step(model, cross_entropy, DEFENCE, train=False))(
        RNG,
        Public(random_weights(model)[0]),
        random_weights(model)[1],
        private,
        random_images(2, *IMAGE_SHAPE),
        np.eye(3, dtype=np.float32)[:2],
    )
