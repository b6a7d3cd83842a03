"""First-order descent: by hand, and against torch on recorded runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kljax.attacks.optimisers import rmsprop, sign_adam
from kljax.attacks.optimisers.first_order import cosine_adam, langevin


def moves(optimiser, grads, count):
    """Records where the same gradient moves three unknowns from 0."""
    free = jax.tree.map(jnp.zeros_like, grads)
    state, places = optimiser.init(free), []
    for _ in range(count):
        free, state = optimiser.step(free, state, jnp.zeros(()), grads)
        places.append(free)
    return jax.tree.map(lambda *leaves: np.stack(leaves), *places)


GRADS = (jnp.array([1e-6, -30.0]), jnp.array([1e-6]), jnp.array([2.0]))


def test_sign_adam_by_hand():
    """Under a constant sign Adam moves by its rate, whatever the gradient's size."""
    images, labels, lock = moves(sign_adam(0.1, 0.02, steps=16), GRADS, 16)
    rates = np.array([1.0] * 6 + [0.1] * 4 + [0.01] * 4 + [0.001] * 2)
    along = -0.1 * np.cumsum(rates)
    np.testing.assert_allclose(images, np.stack([along, -along], 1), rtol=1e-4)
    np.testing.assert_allclose(lock[:, 0], 0.2 * along, rtol=1e-4)
    # Adam's epsilon, 1e-8, is 1 % of the label's gradient: it was not made a sign.
    np.testing.assert_allclose(labels[:, 0], along / 1.01, rtol=1e-4)


def test_signs_change_what_adam_sees():
    """Adam's memory is of signs: a gradient that flips halves nothing else."""
    free = jnp.zeros(1)
    state = sign_adam(0.1).init((free, (), ()))
    one = sign_adam(0.1).step((free, (), ()), state, 0.0, (jnp.array([5.0]), (), ()))
    two = sign_adam(0.1).step(*one, 0.0, (jnp.array([-1e-3]), (), ()))
    # m = (.9 * .1 - .1) / (1 - .81), v = 1 after bias correction
    expected = -0.1 + 0.1 * (0.01 / 0.19)
    np.testing.assert_allclose(two[0][0], expected, rtol=1e-4)


def test_cosine_rates_rise_and_fall():
    """A steady gradient moves by the rate: up to it in four steps, then to nothing."""
    steps, warm_up = 20, 4
    found = moves(cosine_adam(0.1, 0.02, steps=steps, warm_up=warm_up), GRADS, steps)
    images, _, lock = (np.diff(part[:, -1], prepend=0.0) for part in found)
    at = np.arange(steps)
    falling = 0.5 * (1 + np.cos(np.pi * (at - warm_up) / (steps - warm_up)))
    rates = np.where(at < warm_up, at / warm_up, falling)
    np.testing.assert_allclose(images, 0.1 * rates, atol=1e-6)
    np.testing.assert_allclose(lock, -0.02 * rates, atol=1e-6)


def test_short_runs_warm_up_for_a_quarter():
    (images, _, _) = moves(cosine_adam(0.1, steps=8), GRADS, 8)
    moved = -np.diff(images[:, 0], prepend=0.0)
    assert np.argmax(moved) == 2 and moved[0] == 0 and np.all(moved[3:] < moved[2])


def test_langevin_noise_has_its_size_and_falls_with_the_rate():
    noise = langevin(lambda count: jnp.where(count < 1, 1.0, 0.1), 0.2)
    grads = jnp.linspace(-1, 1, 20_000)
    state = noise.init(grads)
    for rate in (1.0, 0.1):
        noisy, state = noise.update(grads, state)
        drawn = (noisy - grads) / (0.2 * rate)
        # of 20,000 draws: five standard errors
        assert abs(float(jnp.mean(drawn))) < 5 / 20_000**0.5
        assert abs(float(jnp.std(drawn)) - 1) < 5 / 40_000**0.5


def test_langevin_noise_follows_the_schedule_step_by_step():
    noise = langevin(lambda count: 10.0**count, 1.0)
    grads = jnp.linspace(-1, 1, 1000)
    state = noise.init(grads)
    for step in range(3):
        noisy, state = noise.update(grads, state)
        assert np.std(noisy - grads) == pytest.approx(10.0**step, rel=0.2)


def test_langevin_noise_is_the_attacks_own_and_the_same_twice():
    noise = langevin(lambda count: 1.0, 1.0)

    def drawn(grads):
        state, found = noise.init(grads), []
        for _ in range(2):
            noisy, state = noise.update(grads, state)
            found.append(np.asarray(noisy - grads))
        return found

    first, again, other = (drawn(jnp.full(4, v)) for v in (1.0, 1.0, 1.5))
    np.testing.assert_array_equal(first, again)
    # Another victim or restart draws otherwise, and so does the next step.
    assert np.all(np.abs(np.subtract(first, other)) > 1e-3)
    assert np.all(np.abs(first[0] - first[1]) > 1e-3)


def test_noise_is_for_images_alone():
    plain = moves(cosine_adam(0.1, steps=12), GRADS, 6)
    noisy = moves(cosine_adam(0.1, steps=12, noise=1.0), GRADS, 6)
    assert np.any(plain[0] != noisy[0])
    np.testing.assert_array_equal(plain[1], noisy[1])
    np.testing.assert_array_equal(plain[2], noisy[2])


@pytest.mark.parametrize("size", (1e-7, 3e-8))
def test_rmsprop_adds_its_epsilon_to_the_root(size):
    """torch's 1e-8, beside gradients whose root of squares, a tenth, is of that order.

    With momentum the normalised steps add up: 1, then half of it and the new one.
    """
    free = (jnp.zeros(1), (), ())
    optimiser = rmsprop(0.1, momentum=0.5)
    state, places, square, speed, x = optimiser.init(free), [], 0.0, 0.0, 0.0
    for _ in range(3):
        free, state = optimiser.step(free, state, 0.0, (jnp.array([size]), (), ()))
        square = 0.99 * square + 0.01 * size**2
        speed = 0.5 * speed + size / (square**0.5 + 1e-8)
        x -= 0.1 * speed
        places.append(x)
        np.testing.assert_allclose(free[0], [x], rtol=1e-4)
    assert len(set(places)) == 3
