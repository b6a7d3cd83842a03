"""Snapshots: what a search has found on the way; they change nothing it finds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_attack import LABEL, NOTHING, Seen

from kljax.attacks import Evolution, Unknown, Unknowns, descend, evolve, from_optax
from kljax.attacks.attack import Reconstruction
from kljax.attacks.drivers import Stage, descend_in_stages
from kljax.attacks.epochs import merged
from kljax.attacks.objectives import squared_l2

VIEW = jnp.array([[1.0, -2.0]])
STEPS = 12


@pytest.fixture(autouse=True)
def _visible(monkeypatch):
    monkeypatch.setattr(
        "kljax.attacks.drivers.search.says_something", lambda view: jnp.asarray(True)
    )


def started(rng, view):
    return jax.random.normal(rng, (1, 2)), ()


INPUTS = Unknown(started, lambda free, fixed: jnp.tanh(free) * 3)
SGD = from_optax(optax.sgd(0.05))
STAGE = Stage(lambda free, fixed: (free, fixed), lambda free, fixed: jnp.tanh(free) * 3)
GUESSES = Evolution(
    4,
    init=lambda rng, start: start,
    ask=lambda rng, state: (jax.random.normal(rng, (4, 2)), state),
    tell=lambda rng, asked, values, state: state,
)


def matches(view, candidate):
    return candidate.inputs, view.grads


def by_gradient(**options):
    unknowns = Unknowns(INPUTS, LABEL, NOTHING)
    return descend(unknowns, matches, squared_l2(), SGD, steps=STEPS, **options)


def in_stages(**options):
    unknowns = Unknowns(INPUTS, LABEL, NOTHING)
    of_stages = [STAGE, STAGE], matches, squared_l2(), [SGD, SGD]
    return descend_in_stages(unknowns, *of_stages, steps=(5, STEPS - 5), **options)


def by_population(**options):
    unknowns = Unknowns(INPUTS, LABEL, NOTHING)
    return evolve(unknowns, matches, squared_l2(), GUESSES, steps=4 * STEPS, **options)


DRIVERS = pytest.mark.parametrize("make", [by_gradient, in_stages, by_population])


@pytest.mark.slow
@DRIVERS
@pytest.mark.parametrize("restarts", [1, 3])
def test_snapshots_change_nothing_and_end_at_what_is_found(make, restarts, rng):
    plain, kept = (
        jax.jit(jax.vmap(make(restarts=restarts, **options)))(
            jax.random.split(rng, 2), Seen(jnp.stack([VIEW, -VIEW]))
        )
        for options in ({}, {"snapshots": 4})
    )
    snapshots, losses = (kept.info.pop(name) for name in ("snapshots", "losses"))
    assert snapshots.shape == (2, 4, 1, 2)
    np.testing.assert_array_equal(snapshots[:, -1], kept.inputs)
    # Each has the loss that is recorded beside it.
    distance = jnp.sum((snapshots - jnp.stack([VIEW, -VIEW])[:, None]) ** 2, (-1, -2))
    np.testing.assert_allclose(distance, losses, rtol=1e-5)
    assert np.all(np.diff(losses) <= 0) and len(np.unique(snapshots)) > 4
    spent = kept.info.pop("loss_evaluations")
    each = int(kept.numbers["evaluations"][0]) // restarts
    np.testing.assert_array_equal(spent, np.tile(each // 4 * np.arange(1, 5), (2, 1)))
    del plain.info["losses"], plain.info["loss_evaluations"]
    assert jax.tree.structure(plain) == jax.tree.structure(kept)
    jax.tree.map(np.testing.assert_array_equal, plain, kept)


@DRIVERS
def test_as_many_are_kept_as_divide_the_steps(make, rng):
    found = make(snapshots=5)(rng, Seen(VIEW))
    assert len(found.info["snapshots"]) == len(found.info["losses"]) == 4


def test_points_beside_snapshots_are_refused():
    with pytest.raises(ValueError, match=r"snapshots=4 .* leave points=3 out"):
        by_gradient(points=3, snapshots=4)
    with pytest.raises(ValueError, match="snapshots=-1 must be at least 0"):
        by_gradient(snapshots=-1)


def test_snapshots_of_several_epochs_are_merged_as_what_is_found(rng):
    snapshots = jax.random.uniform(rng, (3, 4, 2, 2, 1))  # of two epochs of two images

    def attack(rng, view):
        labels = jnp.arange(4)
        last = snapshots[-1]
        return Reconstruction(last, labels, 0.0, True, {"snapshots": snapshots})

    found = merged(attack, 2)(rng, None)
    assert found.info["snapshots"].shape == (3, 2, 2, 2, 1)
    np.testing.assert_allclose(found.info["snapshots"][-1], found.inputs, rtol=1e-6)
