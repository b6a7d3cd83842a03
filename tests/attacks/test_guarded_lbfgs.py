"""The guarded L-BFGS against a slow form: lists of pairs, and Armijo's rule by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import quick_jit

from kljax.attacks import lbfgs

ARMIJO = 1e-4


def slowly(function, start, steps, memory, window, patience):
    """Descends with NumPy (Nocedal and Wright, algorithm 7.4; Grippo et al. 1986).

    Returns:
      The points evaluated [steps, n], and how often what happened.
    """
    x, pairs, values = np.array(start), [], []
    point = grads = direction = None
    length = slope = 0.0
    scale, rejected = 1.0, 0
    places, events = [], {"rejected": 0, "forgotten": 0, "climbed": 0, "unpaired": 0}
    for _ in range(steps):
        places.append(x)
        value, g = function(x)
        allowed = max(values[-window:]) + ARMIJO * length * slope if values else np.inf
        accepted = value <= allowed and np.all(np.isfinite(g))
        if accepted:
            if point is not None:
                move, change = x - point, g - grads
                if change @ move > 1e-10:
                    pairs = [*pairs, (move, change)][-memory:]
                    scale = (change @ move) / (change @ change)
                else:
                    events["unpaired"] += 1
                events["climbed"] += value > values[-1]
            point, grads, rejected = x, g, 0
            values.append(value)
        else:
            events["rejected"] += 1
            rejected += 1
        forgotten = not accepted and rejected >= patience
        if forgotten:
            pairs, scale, rejected = [], 1.0, 0
            events["forgotten"] += 1
        q, alphas = grads.copy(), []
        for move, change in reversed(pairs):
            alphas.append((move @ q) / (change @ move))
            q -= alphas[-1] * change
        q *= scale
        for (move, change), alpha in zip(pairs, reversed(alphas), strict=True):
            q += (alpha - (change @ q) / (change @ move)) * move
        direction = -q
        slope = grads @ direction
        if accepted or forgotten:
            length = 1.0 if pairs else min(1.0, 1 / np.sum(np.abs(grads)))
        else:
            length /= 4
        x = point + length * direction
    return np.array(places), events


def quickly(function, start, steps, **options):
    optimiser = lbfgs(**options)
    evaluate = jax.value_and_grad(function)

    def step(carry, _):
        x, state = carry
        return optimiser.step(x, state, *evaluate(x)), x

    with jax.enable_x64(True):
        first = jnp.asarray(start)
        carry = first, optimiser.init(first)
        return np.asarray(jax.lax.scan(step, carry, length=steps)[1])


def valley(x):
    return jnp.sum((1 - x[:-1]) ** 2 + 100 * (x[1:] - x[:-1] ** 2) ** 2)


def cliff(x):
    """A bowl that ends in NaN on one side, near its lowest point."""
    return jnp.sum(x**2) - 0.2 * jnp.log(x[0] - 0.05) + jnp.sin(3 * x[1])


def ripples(x):
    """Curves down here and there, where no pair is kept."""
    return jnp.sum(0.05 * x**2 - jnp.cos(2 * x))


CASES = {
    "valley": (valley, [-1.2, 1.0, -1.2, 1.0], 40, (3, 2, 2), ("rejected", "climbed")),
    "cliff": (cliff, [2.0, -1.0], 25, (4, 1, 2), ("rejected", "forgotten")),
    "ripples": (ripples, [2.4, -1.4, 5.0], 20, (20, 10, 8), ("unpaired",)),
}


@pytest.mark.parametrize("name", CASES)
def test_it_moves_like_the_slow_form(name):
    function, start, steps, numbers, happens = CASES[name]
    options = dict(zip(("memory", "window", "patience"), numbers, strict=True))
    with jax.enable_x64(True):
        evaluate = jax.jit(jax.value_and_grad(function))

        def by_numpy(x):
            value, grads = evaluate(x)
            return float(value), np.asarray(grads)

        wanted, events = slowly(by_numpy, start, steps, **options)
    found = quickly(function, start, steps, **options)
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-8)
    assert all(events[event] for event in happens), events


@pytest.mark.parametrize(
    ("window", "value", "accepted"),
    [
        (1, 1.0 - 2.0 * ARMIJO, True),
        (1, 1.0 - 0.5 * ARMIJO, False),  # lower, but not enough
        (1, 1.0 + 1e-3, False),
        (2, 3.0 - 2.0 * ARMIJO, True),  # enough below the largest of the last two
        (2, 3.0 - 0.5 * ARMIJO, False),
        (2, np.nan, False),
    ],
)
def test_a_trial_must_be_sufficiently_below_the_last_values(window, value, accepted):
    """One unknown; the step is 1 and the slope -1, so Armijo asks for 1e-4 less.

    Values 3, then 1, are accepted; the third decides.
    """
    # Falling by a constant slope of 1: no curvature, so no pair is ever kept.
    x = after(window, (3.0, 1.0, value))
    # From there on by a whole step; or a quarter of the last one from where it was.
    assert x.tolist() == ([-3.0] if accepted else [-1.25])


@functools.cache
def stepping(window):
    return quick_jit(lbfgs(window=window, memory=2).step)


def after(window, values, slopes=(1.0, 1.0, 1.0)):
    """Gives the place that values and slopes at the places before lead to."""
    step = stepping(window)
    with jax.enable_x64(True):
        x = jnp.array([0.0])
        state = lbfgs(window=window, memory=2).init(x)
        for value, slope in zip(values, slopes, strict=True):
            x, state = step(x, state, jnp.array(value), jnp.array([slope]))
    return x


def test_a_gradient_that_is_not_finite_is_no_place_to_stay():
    assert after(1, (3.0, 1.0), (1.0, np.inf)).tolist() == [-0.25]


@pytest.mark.parametrize(("bend", "kept"), [(0.8e-10, False), (1.25e-10, True)])
def test_a_pair_must_curve_by_1e_10(bend, kept):
    """torch's floor. A step of 1 along which the slope falls by so much, from 1."""
    x = after(1, (3.0, 1.0), (1.0, 1.0 - bend))
    # Newton's step, or the gradient's.
    expected = -1 - (1 / bend if kept else 1.0)
    np.testing.assert_allclose(x, [expected], rtol=1e-5)
