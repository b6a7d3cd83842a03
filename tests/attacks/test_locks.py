"""Strategies against a lock: what each makes of what it is given."""

import jax
import numpy as np
import pytest
from toys import (
    LOCK,
    SITES,
    WIDTHS,
    locked_update,
    random_private,
    setting,
    threat,
)

from kljax.attacks import LOCKS
from kljax.defences import keylock
from kljax.threat import STRATEGY, observe
from kljax.typing import Gate

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
    lock = LOCKS[name](setting(model, DEFENCE))
    free, fixed = lock.unknown.start(rng, observe(model, update or locked_update(2)))
    part = lock.unknown.decode(free, fixed)
    return free, part, lock.gates((), part)


def gates_from(private_key):
    return LOCK.gates(locked_update(2).private.trainable, private_key)


def assert_close(found, expected, rtol=1e-6):
    assert found.keys() == expected.keys()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol), found, expected
    )


def test_the_table_is_that_of_the_threat_model():
    # What peeling needs is more than this toy has: test_peeling.py.
    assert set(LOCKS) == {*LEAST, "peel"} == set(STRATEGY["lock"])


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


def test_regressed_gates_start_positive_and_follow_what_is_optimised():
    model = threat("regress_gates", "joint", examples=2)
    ground = setting(model, DEFENCE, sites=(("norm", 400), ("fc", 3)))
    lock = LOCKS["regress_gates"](ground)
    view = observe(model, locked_update(2))
    assert view.private_key is None and view.lock_weights is None
    free, fixed = lock.unknown.start(RNG, view)
    gates = lock.gates((), lock.unknown.decode(free, fixed))
    assert gates.keys() == {"norm", "fc"}
    values = np.stack(gates["norm"])
    # |N(0, 1)|: positive, mean sqrt(2 / pi); scale and shift draw for themselves.
    assert np.all(values > 0)
    np.testing.assert_allclose(values.mean(axis=1), np.sqrt(2 / np.pi), atol=0.1)
    assert abs(np.corrcoef(values)[0, 1]) < 0.15
    # Softplus: it cannot leave the positive side, and is the identity far out.
    moved = {site: Gate(*(g - 50.0 for g in gate)) for site, gate in free.items()}
    assert np.all(np.stack(lock.unknown.decode(moved, fixed)["norm"]) > 0)
    moved = {site: Gate(*(0 * g + 50.0 for g in gate)) for site, gate in free.items()}
    np.testing.assert_allclose(lock.unknown.decode(moved, fixed)["norm"].scale, 50.0)
