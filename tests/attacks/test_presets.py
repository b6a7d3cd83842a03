"""Presets of iterative attacks: each must succeed, must be able to fail, and must not
see what is hidden from it.

Thresholds: the worst mean squared error seen over four networks, times ten. A grey
image has 0.14 to 0.18 on these digits.
"""

import functools
import inspect

import jax
import numpy as np
import pytest
from victims import Case, compiled, drowned, error_of, filled, update

from kljax.attacks import presets

GREY = 0.14


def build(name, **options):
    options = {"restarts": 1} | options
    return lambda setting: presets.PRESETS[name].build(setting, **options)


# name -> the attack, and the error below which it has succeeded
CASES = {
    "inverting-gradients": (
        Case(build("inverting-gradients", steps=200, restarts=2), examples=2),
        1e-4,
    ),
}


@functools.cache
def attack(name):
    return compiled(CASES[name][0])


def victim(name):
    case, _ = CASES[name]
    return update(case.examples, train=case.train)


@pytest.mark.parametrize("name", CASES)
def test_it_succeeds_on_an_undefended_victim(name):
    truth = victim(name)
    found = attack(name)(truth)
    assert error_of(found, truth) < CASES[name][1] < GREY / 4
    assert bool(found.finite)
    assert found.labels.tolist() == np.argmax(truth.targets, axis=-1).tolist()


@pytest.mark.parametrize("name", CASES)
def test_it_fails_where_noise_leaves_nothing(name):
    truth = victim(name)
    found = attack(name)(drowned(truth))
    assert error_of(found, truth) > GREY / 2


@pytest.mark.parametrize("name", CASES)
def test_a_broken_gradient_is_a_reported_failure(name):
    found = attack(name)(filled(victim(name), np.nan))
    assert not bool(found.finite)


@pytest.mark.parametrize("name", CASES)
def test_an_all_zero_gradient_is_no_success(name):
    """Nothing to match: the loss stays where it says so, and nothing is NaN."""
    truth = victim(name)
    clean, found = attack(name)(truth), attack(name)(filled(truth, 0.0))
    assert np.all(np.isfinite(found.images))
    assert float(found.loss) > 100 * abs(float(clean.loss))


@pytest.mark.parametrize("name", CASES)
def test_what_is_hidden_cannot_change_a_reconstruction(name):
    truth, facts = victim(name), CASES[name][0].facts
    clean = attack(name)(truth)
    nothing = functools.partial(jax.tree.map, lambda x: np.full_like(x, np.nan))
    hidden = {"images": nothing(truth.images), "lock_grads": nothing(truth.lock_grads)}
    stats = {"new_stats": nothing(truth.new_stats)}
    if facts.get("stats") == "visible":  # it needs them, and so they do change it
        blind = attack(name)(truth._replace(**stats))
        assert not bool(blind.finite)
    else:
        hidden |= stats
    poisoned = attack(name)(truth._replace(**hidden))
    assert jax.tree.all(jax.tree.map(np.array_equal, clean, poisoned))


def defaults(function):
    parameters = inspect.signature(function).parameters.values()
    empty = inspect.Parameter.empty
    return {p.name: p.default for p in parameters if p.default not in (empty, None)}


# The papers' values, see the spec of each in its docstring.
GOLDEN = {
    presets.inverting_gradients: {"variation": 1e-4, "learning_rate": 0.1},
}


@pytest.mark.parametrize("preset", GOLDEN, ids=lambda preset: preset.__name__)
def test_presets_carry_the_papers_values(preset):
    assert defaults(preset) == GOLDEN[preset]
