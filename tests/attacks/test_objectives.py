"""Distances between gradients, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import quick_jit

from kljax.attacks import OBJECTIVES, cosine, squared_l2
from kljax.attacks.objectives import cosine_per_tensor, l2_norm, norm, scaled, tag

A = {"one": jnp.array([3.0, 0.0]), "two": (jnp.array([[4.0]]),)}
B = {"one": jnp.array([0.0, 2.0]), "two": (jnp.array([[1.0]]),)}
ALL = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)


def times(scale, tree):
    return jax.tree.map(lambda leaf: scale * leaf, tree)


def slopes(objective, at, observed):
    grads = quick_jit(jax.grad(objective))(at, observed)
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(grads)])


@ALL
def test_equal_gradients_have_no_distance(objective):
    assert abs(objective()(A, A)) < 1e-6
    np.testing.assert_allclose(slopes(objective(), A, A), 0, atol=1e-6)


def test_squared_l2_by_hand():
    assert squared_l2()(A, B) == 9 + 4 + 9
    np.testing.assert_array_equal(slopes(squared_l2(), A, B), [6, -4, 6])


def test_cosine_by_hand():
    # <A, B> = 4, |A| = 5, |B| = sqrt(5); d/dA = (<A, B> A / 25 - B) / (5 sqrt(5))
    assert cosine()(A, B) == pytest.approx(1 - 4 / (5 * np.sqrt(5)), abs=1e-6)
    expected = (4 * np.array([3, 0, 4]) / 25 - np.array([0, 2, 1])) / (5 * np.sqrt(5))
    np.testing.assert_allclose(slopes(cosine(), A, B), expected, atol=1e-6)
    assert cosine()(A, times(-1, A)) == pytest.approx(2, abs=1e-6)


def test_unsquared_norms_by_hand():
    # Differences (3, -2) and 3.
    assert norm()(A, B) == pytest.approx(13**0.5 + 3)
    root = 13**0.5
    np.testing.assert_allclose(slopes(norm(), A, B), [3 / root, -2 / root, 1])
    assert l2_norm()(A, B) == pytest.approx(22 + 22**0.5)
    factor = 2 + 22**-0.5
    np.testing.assert_allclose(
        slopes(l2_norm(), A, B), [3 * factor, -2 * factor, 3 * factor], rtol=1e-6
    )


def test_tag_by_hand():
    assert tag(0.5)(A, B) == 22 + 0.5 * 8
    np.testing.assert_array_equal(slopes(tag(0.5), A, B), [6.5, -4.5, 6.5])
    assert tag(0.5, scaled(squared_l2(), 2.0))(A, B) == 22 + 22
    assert tag(0)(A, B) == 22
    with pytest.raises(ValueError, match="alpha must be >= 0, got -1"):
        tag(-1)


def test_cosine_per_tensor_by_hand():
    # (3, 0) and (0, 2) are at right angles, 4 and 1 are parallel.
    assert cosine_per_tensor()(A, B) == pytest.approx(0.5, abs=1e-6)
    scaled_one = {**A, "one": 1e-3 * A["one"]}
    assert cosine_per_tensor()(scaled_one, B) == pytest.approx(0.5, abs=1e-6)


def test_cosine_per_tensor_leaves_out_what_is_rounding():
    faint = {**B, "one": 1e-8 * B["one"]}
    assert cosine_per_tensor()(A, faint) == pytest.approx(0, abs=1e-6)
    assert slopes(cosine_per_tensor(), A, faint)[:2].tolist() == [0, 0]
    assert cosine_per_tensor()(A, times(0, B)) == 1


@pytest.mark.parametrize("scale", (1e-25, 1e-10, 1e10, 1e25))
def test_cosine_is_blind_to_length(scale):
    """Gradients of a trained network are small: their squares must not vanish."""
    expected = pytest.approx(float(cosine()(A, B)), abs=1e-6)
    assert cosine()(times(scale, A), B) == expected
    assert cosine()(A, times(scale, B)) == expected
    assert cosine()(times(scale, A), times(scale, A)) == pytest.approx(0, abs=1e-6)


@ALL
@pytest.mark.parametrize("zero", ("simulated", "observed", "both"))
def test_a_zero_gradient_has_a_finite_distance(objective, zero):
    simulated = A if zero == "observed" else times(0, A)
    observed = B if zero == "simulated" else times(0, B)
    value = objective()(simulated, observed)
    assert np.isfinite(value)
    assert np.all(np.isfinite(slopes(objective(), simulated, observed)))
    if objective is cosine:
        assert value == 1


@ALL
def test_a_broken_gradient_stays_broken(objective):
    broken = {**A, "one": jnp.array([jnp.nan, 0.0])}
    assert np.isnan(objective()(broken, B)) and np.isnan(objective()(B, broken))


@pytest.mark.parametrize("objective", [cosine, l2_norm])
def test_numbers_of_tensors_are_added_up_once(objective):
    """No sum of numbers that XLA would make anew for each entry of a gradient."""
    grads = {f"tensor {i}": jnp.ones((2, 3)) for i in range(9)}
    program = jax.make_jaxpr(jax.grad(objective()))(grads, grads)
    numbers = [
        equation
        for equation in program.eqns
        if equation.primitive.name in ("add", "max", "reduce_max")
        and all(x.aval.shape == () for x in (*equation.invars, *equation.outvars))
    ]
    assert len(numbers) < len(grads) / 2
    assert any(e.primitive.name == "cumsum" for e in program.eqns)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_what_is_added_up_over_tensors_is_that_of_64_bits(dtype):
    """Of many tensors and victims at once: a sum in 8 bits would stop at 256."""
    generator = np.random.default_rng(0)
    draw = [generator.standard_normal((3, 2, 700)) for _ in range(24)]
    grads = [jnp.asarray(x[:2], dtype) for x in draw]
    others = [jnp.asarray(x[1:] + 1, dtype) for x in draw]
    found = jax.vmap(squared_l2())(grads, others)
    pairs = [
        [np.asarray(x, np.float64) for x in pair]
        for pair in zip(grads, others, strict=True)
    ]
    expected = sum(((a - b) ** 2).sum((1, 2)) for a, b in pairs)
    rounding = float(jnp.finfo(dtype).eps)  # of each tensor's number
    np.testing.assert_allclose(found, expected, rtol=2 * rounding + 1e-6)
