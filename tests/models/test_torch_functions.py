"""What stands for PyTorch's functions, by hand; no PyTorch is needed."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kljax.models.pytorch.functions import (
    FUNCTIONS,
    adaptive_avg_pool,
    attend,
    avg_pool,
    max_pool,
)

X = np.array([-2.5, -1.0, -0.3, 0.0, 0.2, 0.5, 0.7, 3.0], np.float32)


def slopes(name, **options):
    return jax.grad(lambda x: jnp.sum(FUNCTIONS[name](x, **options)))(jnp.asarray(X))


def test_a_cut_on_both_sides_has_no_slope_at_its_ends():
    found = FUNCTIONS["hardtanh"](X, min_val=-1.0, max_val=0.5)
    np.testing.assert_array_equal(found, np.clip(X, -1.0, 0.5))
    inside = [float(-1 < x < 0.5) for x in X]
    np.testing.assert_array_equal(slopes("hardtanh", min_val=-1.0, max_val=0.5), inside)
    np.testing.assert_array_equal(FUNCTIONS["hardtanh"](X), np.clip(X, -1, 1))


def test_softplus_is_straight_beyond_its_threshold():
    wanted = [x if 2 * x > 1 else math.log1p(math.exp(2 * x)) / 2 for x in X]
    found = FUNCTIONS["softplus"](X, beta=2, threshold=1)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    straight = [math.log1p(math.exp(x)) for x in X]
    np.testing.assert_allclose(FUNCTIONS["softplus"](X), straight, rtol=1e-6)


def test_kinks_at_0_have_the_slopes_of_pytorch():
    wanted = [x if x > 0 else 0.1 * x for x in X]
    found = FUNCTIONS["leaky_relu"](X, negative_slope=0.1)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    left = slopes("leaky_relu", negative_slope=0.1)
    np.testing.assert_allclose(left, np.where(X > 0, 1, 0.1), rtol=1e-6)
    np.testing.assert_array_equal(FUNCTIONS["abs"](X), np.abs(X))
    np.testing.assert_array_equal(slopes("abs"), np.sign(X))


def test_gelu_by_hand():
    exact = [x * (1 + math.erf(x / math.sqrt(2))) / 2 for x in X]
    np.testing.assert_allclose(FUNCTIONS["gelu"](X), exact, atol=1e-6)
    inner = np.sqrt(2 / np.pi) * (X + 0.044715 * X**3)
    near = FUNCTIONS["gelu"](X, approximate="tanh")
    np.testing.assert_allclose(near, X / 2 * (1 + np.tanh(inner)), atol=1e-6)


PICTURE = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)


def windows(size, stride, pad, fill):
    """Gives the windows [h, w] of a picture, one below and beside another."""
    wide = np.pad(PICTURE, pad, constant_values=fill)
    rows = range(0, wide.shape[0] - size[0] + 1, stride[0])
    columns = range(0, wide.shape[1] - size[1] + 1, stride[1])
    return [[wide[i : i + size[0], j : j + size[1]] for j in columns] for i in rows]


def pooled(function, *windows_of):
    return [[function(one) for one in row] for row in windows(*windows_of)]


def test_pools_are_of_their_windows():
    x = jnp.asarray(PICTURE[None, :, :, None])
    options = {"kernel_size": (3, 2), "stride": (2, 1), "padding": 1}
    shape = (3, 2), (2, 1), 1
    found = max_pool(x, **options)[0, ..., 0]
    np.testing.assert_allclose(found, pooled(np.max, *shape, -np.inf), rtol=1e-6)
    found = avg_pool(x, **options)[0, ..., 0]
    np.testing.assert_allclose(found, pooled(np.mean, *shape, 0), atol=1e-6)
    found = avg_pool(x, **options, count_include_pad=False)[0, ..., 0]
    np.testing.assert_allclose(found, pooled(np.nanmean, *shape, np.nan), atol=1e-6)
    found = max_pool(x, 2)[0, ..., 0]
    np.testing.assert_allclose(found, pooled(np.max, (2, 2), (2, 2), 0, 0), rtol=1e-6)


def test_an_adaptive_pool_is_of_equal_windows():
    x = jnp.asarray(PICTURE[None, :4, :, None])
    found = adaptive_avg_pool(x, (2, None))[0, ..., 0]
    np.testing.assert_allclose(
        found, [PICTURE[:2].mean(0), PICTURE[2:4].mean(0)], rtol=1e-6
    )
    found = adaptive_avg_pool(x, (4, 2))[0, ..., 0]
    wanted = [[row[:2].mean(), row[2:].mean()] for row in PICTURE[:4]]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    for size in ((3, 4), (4, 3)):
        with pytest.raises(ValueError, match="windows of several sizes"):
            adaptive_avg_pool(x, size)


def test_axes_are_those_of_pytorch():
    x = jnp.arange(24.0).reshape(2, 3, 4)
    assert FUNCTIONS["flatten"](x, 1).shape == (2, 12)
    assert FUNCTIONS["flatten"](x, 0, 1).shape == (6, 4)
    assert FUNCTIONS["flatten"](x).shape == (24,)
    parts = FUNCTIONS["split"](x, 3, 2)
    assert [part.shape[2] for part in parts] == [3, 1]
    np.testing.assert_array_equal(parts[1], x[..., 3:])
    parts = FUNCTIONS["split"](x, [1, 3], 2)
    assert [part.shape[2] for part in parts] == [1, 3]
    assert [part.shape[1] for part in FUNCTIONS["chunk"](x, 2, 1)] == [2, 1]
    one = x[:1, :, None]
    assert FUNCTIONS["squeeze"](one).shape == (3, 4)
    assert FUNCTIONS["squeeze"](one, 0).shape == (3, 1, 4)
    assert FUNCTIONS["squeeze"](one, (1, 2)).shape == (1, 3, 4)
    assert FUNCTIONS["expand"](x[:1], 2, -1, 4).shape == (2, 3, 4)
    assert FUNCTIONS["expand"](x[0], 5, -1, -1).shape == (5, 3, 4)
    np.testing.assert_allclose(FUNCTIONS["mean"](x, (0, 2)), x.mean((0, 2)))
    assert FUNCTIONS["permute"](x, 2, 0, 1).shape == (4, 2, 3)
    assert FUNCTIONS["cat"]([x, x], dim=1).shape == (2, 6, 4)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_by_loops(causal):
    q, k, v = (
        np.random.default_rng(1).normal(size=(3, 4, 2)).astype(np.float32)[:, None]
    )
    wanted = np.zeros((4, 2))
    for i in range(4):
        seen = range(i + 1) if causal else range(4)
        odds = {j: math.exp(q[0, i] @ k[0, j] / math.sqrt(2)) for j in seen}
        wanted[i] = sum(odds[j] * v[0, j] for j in seen) / sum(odds.values())
    found = attend(q, k, v, causal=causal)
    np.testing.assert_allclose(found[0], wanted, rtol=1e-5)
    np.testing.assert_allclose(
        FUNCTIONS["scaled_dot_product_attention"](q, k, v, is_causal=causal)[0],
        wanted,
        rtol=1e-5,
    )
