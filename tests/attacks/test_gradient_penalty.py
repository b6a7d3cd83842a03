"""The gradient penalty, against a slow form on a function whose Hessian is known."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kljax.attacks import from_optax
from kljax.attacks.optimisers import with_gradient_penalty

CURVES = np.array([1.0, 4.0, 0.3])
RATE = 0.05


def gradient(x):
    return CURVES * x**3


def descend(optimiser, count):
    """Records where ``sum(curves x^4) / 4`` was evaluated, and what was moved."""
    free = jnp.array([0.3, -1.0, 2.0])
    state, places = optimiser.init(free), []
    for _ in range(count):
        places.append(np.array(free))
        value = jnp.sum(CURVES * free**4) / 4
        free, state = optimiser.step(
            free, state, value, gradient(free).astype(jnp.float32)
        )
    return np.array(places)


def sgd():
    return from_optax(optax.sgd(RATE))


@pytest.mark.parametrize(("radius", "weight"), [(0.1, 0.5), (0.02, 1.0), (0.1, 0.0)])
def test_it_moves_by_both_gradients(radius, weight):
    found = descend(with_gradient_penalty(sgd(), radius=radius, weight=weight), 20)
    place = np.array([0.3, -1.0, 2.0])
    for here, ahead in zip(found[::2], found[1::2], strict=True):
        first = gradient(place)
        there = place + radius * np.sqrt(3) * first / np.linalg.norm(first)
        np.testing.assert_allclose(here, place, atol=1e-5)
        np.testing.assert_allclose(ahead, there, atol=1e-5)
        place = place - RATE * ((1 - weight) * first + weight * gradient(there))


def test_to_first_order_it_penalises_the_gradients_length():
    """Against the derivative of V + weight r |grad V|, which has a Hessian."""
    radius, weight, place = 1e-3, 0.7, np.array([0.3, -1.0, 2.0])
    found = descend(with_gradient_penalty(sgd(), radius=radius, weight=weight), 3)
    first = gradient(place)
    curvature = 3 * CURVES * place**2 * first / np.linalg.norm(first)
    wanted = first + weight * radius * np.sqrt(3) * curvature
    step = (place - found[2]) / RATE
    np.testing.assert_allclose(step, wanted, rtol=1e-4)
    assert np.abs(wanted / first - 1).max() > 1e-3  # what is added is seen


def test_without_weight_it_is_the_optimiser_itself_at_every_second_step():
    adam = from_optax(optax.adam(0.1))
    plain = descend(adam, 10)
    found = descend(with_gradient_penalty(adam, radius=0.1, weight=0.0), 20)
    np.testing.assert_allclose(found[::2], plain, atol=1e-6)


def test_a_gradient_of_zeros_stays_where_it_is():
    optimiser = with_gradient_penalty(sgd(), radius=0.1, weight=0.5)
    free = jnp.ones(3)
    moved, _ = optimiser.step(free, optimiser.init(free), 0.0, jnp.zeros(3))
    np.testing.assert_array_equal(moved, free)


def test_victims_side_by_side_do_not_see_each_other():
    optimiser = with_gradient_penalty(sgd(), radius=0.1, weight=0.5)
    free = jnp.array([[0.3, -1.0, 2.0], [5.0, 5.0, -5.0]])

    def one(x):
        return optimiser.step(x, optimiser.init(x), 0.0, x**3)[0]

    both = jax.vmap(one)(free)
    np.testing.assert_allclose(both[0], one(free[0]), rtol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"radius": 0.0, "weight": 0.5}, "radius must be positive"),
        ({"radius": 0.1, "weight": 1.5}, r"weight must be in \[0, 1\]"),
        ({"radius": 0.1, "weight": -0.5}, r"weight must be in \[0, 1\]"),
    ],
)
def test_numbers_out_of_range_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        with_gradient_penalty(sgd(), **wrong)
