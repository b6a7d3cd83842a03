"""First-order descent: by hand, and against torch on recorded runs."""

import jax
import jax.numpy as jnp
import numpy as np

from kljax.attacks.optimisers import sign_adam


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
