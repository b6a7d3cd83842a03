"""Pooling against XLA's own windows: values, and first and second derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from toys import quick_jit

from kljax.models import avg_pool, max_pool

# window, strides, padding, images; the last three are left to Flax.
CASES = {
    "side by side": ((2, 2), (2, 2), "VALID", (2, 6, 4, 3)),
    "a rest is cut off": ((2, 3), (2, 3), "VALID", (2, 5, 7, 2)),
    "one window": ((4, 3), (4, 3), "SAME", (1, 4, 3, 2)),
    "no padding, in numbers": ((3, 3), (3, 3), ((0, 0), (0, 0)), (1, 6, 6, 1)),
    "overlap": ((3, 3), (2, 2), "VALID", (1, 7, 7, 2)),
    "padding": ((2, 2), (2, 2), ((1, 1), (0, 0)), (1, 4, 4, 2)),
    "strides of one": ((2, 2), None, "VALID", (1, 4, 4, 1)),
}
POOLS = {"max": (max_pool, nnx.max_pool), "avg": (avg_pool, nnx.avg_pool)}


def derivatives(pool, case):
    """Gives a function's value, gradient and the gradient of that gradient's square."""
    window, strides, padding, _ = case

    def loss(x):
        return jnp.sum(jnp.sin(3 * pool(x, window, strides, padding)))

    def squared(x):
        return jnp.sum(jax.grad(loss)(x) ** 2)

    def all_of_it(x):
        value = pool(x, window, strides, padding)
        return value, jax.grad(loss)(x), jax.grad(squared)(x)

    return all_of_it


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("kind", POOLS)
def test_values_and_derivatives_are_those_of_windows(kind, case):
    shape = case[-1]
    # Few values, so that the largest of a window is often there twice.
    values = np.random.default_rng(0).integers(-2, 2, shape).astype(np.float32)
    ours, theirs = (quick_jit(derivatives(pool, case))(values) for pool in POOLS[kind])
    for got, right in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(got, right, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("place", range(4))
def test_nan_is_the_largest(place):
    values = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
    values[0, place // 2, place % 2] = np.nan
    pooled = max_pool(values, (2, 2), (2, 2))[0, :, :, 0]
    np.testing.assert_array_equal(pooled, [[np.nan, 7], [13, 15]])


def test_a_window_larger_than_the_image_gives_no_pixels_as_of_flax():
    images = np.ones((1, 2, 2, 1), np.float32)
    for pool in (max_pool, nnx.max_pool, avg_pool, nnx.avg_pool):
        assert pool(images, (3, 3), (3, 3)).shape == (1, 0, 0, 1)


@pytest.mark.parametrize("pool", [max_pool, avg_pool])
def test_windows_side_by_side_are_not_taken_one_entry_at_a_time(pool):
    program = str(
        jax.make_jaxpr(derivatives(pool, CASES["side by side"]))(
            np.ones((2, 6, 4, 3), np.float32)
        )
    )
    assert "reduce_window" not in program and "select_and" not in program
