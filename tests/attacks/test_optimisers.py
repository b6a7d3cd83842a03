"""Optimisers: parity with torch on recorded runs, and the guarded L-BFGS."""

import functools
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import quick_jit

from kljax.attacks import adam, from_optax, lbfgs, lbfgs_torch
from kljax.attacks.optimisers import make_optimiser

GOLDENS = np.load(Path(__file__).parents[1] / "goldens" / "lbfgs.npz")


def quadratic(x):
    a, b = GOLDENS["quadratic/A"], GOLDENS["quadratic/b"]
    return 0.5 * x @ a @ x - b @ x


def rosenbrock(x):
    return jnp.sum((1 - x[:-1]) ** 2 + 5 * (x[1:] - x[:-1] ** 2) ** 2)


def concave(x):
    return jnp.sum(x**4 / 4 - x**2 / 2) + 0.1 * x[0] * x[1]


def bowl(x):
    return x @ x / 2


def root(x):
    return jnp.sum(x - 2 * jnp.sqrt(x))


CASES = {
    "quadratic": quadratic,
    "quadratic_short": quadratic,
    "quadratic_history3": quadratic,
    "rosenbrock": rosenbrock,
    "rosenbrock_history3": rosenbrock,
    "concave": concave,
    "bowl": bowl,
    "root": root,
}


def trajectory(optimiser, function, start, steps):
    """Records the points and values of `steps` evaluations."""
    evaluate = jax.value_and_grad(function)

    def step(carry, _):
        x, state = carry
        value, grads = evaluate(x)
        return optimiser.step(x, state, value, grads), (x, value)

    carry = start, optimiser.init(start)
    (x, _), (points, values) = jax.lax.scan(step, carry, length=steps)
    return x, points, values


def run_in_float64(optimiser, function, start, steps):
    with jax.enable_x64(True):
        return jax.tree.map(
            np.asarray, trajectory(optimiser, function, jnp.asarray(start), steps)
        )


@pytest.mark.parametrize("name", CASES)
def test_lbfgs_torch_moves_like_torch(name):
    history, max_iter, max_eval = map(int, GOLDENS[f"{name}/settings"])
    losses = GOLDENS[f"{name}/losses"]
    optimiser = lbfgs_torch(max_iter=max_iter, max_eval=max_eval, history=history)
    end, points, values = run_in_float64(
        optimiser, CASES[name], GOLDENS[f"{name}/x0"], len(losses)
    )
    points = np.concatenate([points, end[None]])
    drift = float(np.nan_to_num(GOLDENS[f"{name}/loss_drift"], nan=1e-12))
    tolerance = 1e-9 + 100 * drift
    np.testing.assert_allclose(
        values, losses, rtol=0, atol=tolerance * np.nanmax(np.abs(losses))
    )
    # Where torch's calls end, evaluation for evaluation.
    ends = np.cumsum(GOLDENS[f"{name}/evaluations"])
    np.testing.assert_allclose(
        points[ends], GOLDENS[f"{name}/iterates"], rtol=1e-6, atol=1e-8
    )


def test_a_call_ends_where_a_direction_does_not_descend():
    """torch breaks off, and the next call has all its moves and evaluations again.

    A slope of 1, then 1e-5 with a curvature of 1: its direction is -1e-5, and g'd is
    -1e-10, which is not enough.
    """
    optimiser = lbfgs_torch(max_iter=3, max_eval=3)
    evaluate = quick_jit(optimiser.step)
    with jax.enable_x64(True):
        x = jnp.array([0.0])
        state, seen = optimiser.init(x), []
        for value, slope in ((5.0, 1.0), (4.0, 1e-5), (3.0, 1.0), (2.0, 1.0)):
            x, state = evaluate(x, state, jnp.array(value), jnp.array([slope]))
            seen.append((float(x[0]), int(state.inner)))
    assert seen[0] == (-1.0, 1)
    # It stays, and nothing of the call is left.
    assert seen[1] == (-1.0, 0)
    assert seen[2][0] < -1.0 and seen[2][1] == 1 and seen[3][1] == 2


def test_of_torchs_twenty_moves_each_has_a_quarter_more_evaluations():
    """Its defaults: with max_eval 25 the count of moves ends a call first."""
    optimiser = lbfgs_torch()
    evaluate = quick_jit(optimiser.step)
    x = jnp.array([0.0])
    state, inner = optimiser.init(x), []
    for step in range(22):
        x, state = evaluate(x, state, jnp.array(-float(step)), jnp.array([1.0]))
        inner.append(int(state.inner))
    assert inner == [*range(1, 20), 0, 1, 2]


def valley(x):
    """Rosenbrock's banana in 10 dimensions: fixed unit steps fail on it."""
    return jnp.sum((1 - x[:-1]) ** 2 + 100 * (x[1:] - x[:-1] ** 2) ** 2)


def test_lbfgs_reaches_the_minimum_of_a_hard_valley():
    end, _, values = run_in_float64(lbfgs(), valley, np.tile([-1.2, 1.0], 5), 400)
    assert values[0] > 1000
    assert values[-1] < 1e-12
    np.testing.assert_allclose(end, 1, atol=1e-6)


@pytest.mark.parametrize("window", (1, 10))
def test_lbfgs_comes_back_from_its_excursions(window):
    start = jnp.tile(jnp.array([-1.2, 1.0]), 5)
    _, _, values = trajectory(lbfgs(window=window), valley, start, 300)
    # It comes back from every excursion: the last accepted values are the lowest.
    assert np.median(values[-20:]) < 1e-3 * values[0]


def test_lbfgs_survives_where_fixed_steps_break():
    start = GOLDENS["root/x0"]
    _, _, fixed = run_in_float64(lbfgs_torch(), root, start, 60)
    end, _, _ = run_in_float64(lbfgs(), root, start, 60)
    assert not np.isfinite(fixed[-1])
    np.testing.assert_allclose(end, 1, atol=1e-4)


def test_lbfgs_stays_put_when_the_gradient_is_nan():
    optimiser = lbfgs()
    x = jnp.array([1.0, 2.0])
    state = optimiser.init(x)
    x1, state = optimiser.step(x, state, jnp.nan, jnp.array([jnp.nan, 0.0]))
    assert np.all(np.isfinite(x1))


@pytest.mark.parametrize(
    "optimiser",
    (adam(), lbfgs(memory=3), lbfgs_torch(history=3)),
    ids=("adam", "lbfgs", "lbfgs_torch"),
)
def test_one_lane_equals_itself_in_a_batch(optimiser):
    starts = jnp.array([[0.3, -0.4, 1.0], [1.1, 0.9, -2.0]])
    # The driver's tree: images, labels, lock.
    free = (starts, (), 2 * starts)

    def function(free):
        return rosenbrock(jnp.concatenate([free[0], free[2]]))

    run = functools.partial(trajectory, optimiser, function, steps=6)
    single = [run(jax.tree.map(lambda x, n=n: x[n], free)) for n in range(2)]
    batch = jax.vmap(run)(free)
    for n in range(2):
        chex.assert_trees_all_close(
            single[n], jax.tree.map(lambda x, n=n: x[n], batch), rtol=1e-4
        )


def test_the_lock_has_a_rate_of_its_own():
    optimiser = from_optax(optax.sgd(0.1), secret=optax.sgd(0.5))
    free = (jnp.ones(2), jnp.ones(1), {"norm": jnp.ones(3)})
    moved, _ = optimiser.step(free, optimiser.init(free), jnp.array(0.0), free)
    np.testing.assert_allclose(moved[0], 0.9)
    np.testing.assert_allclose(moved[1], 0.9)
    np.testing.assert_allclose(moved[2]["norm"], 0.5)


def test_a_function_that_gives_no_optimiser_is_refused():
    with pytest.raises(ValueError, match="'optax:adam' gave no .*from_optax"):
        make_optimiser("optax:adam", 0.1)
    with pytest.raises(ValueError, match="'optax:adam' .* step_size=None: .*missing"):
        make_optimiser("optax:adam")
