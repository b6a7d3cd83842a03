"""Singular values and eigenvalues by products alone, against NumPy's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kljax.core.lanczos import eigenvalues, singular_values

RNG = jax.random.key(0)
ROWS, SIZE = 12, 8


@functools.partial(jax.jit, static_argnames="steps")
def of_matrix(matrix, steps=SIZE):
    return singular_values(
        lambda v: matrix @ v, lambda u: matrix.T @ u, SIZE, RNG, steps=steps
    )


@jax.jit
def of_symmetric(matrix):
    return eigenvalues(lambda v: matrix @ v, SIZE, RNG, steps=SIZE)


def conditioned(values, seed=0):
    """Makes a matrix [ROWS, SIZE] of given singular values."""
    generator = np.random.default_rng(seed)
    left = np.linalg.qr(generator.standard_normal((ROWS, SIZE)))[0]
    right = np.linalg.qr(generator.standard_normal((SIZE, SIZE)))[0]
    return np.float32(left @ np.diag(values) @ right.T)


@pytest.mark.parametrize(
    "values",
    (
        np.geomspace(1, 1e-5, SIZE),
        # Repeated values end the basis early: it goes on from a drawn direction.
        np.array([2, 2, 2, 0.5, 0.5, 0, 0, 0]),
        np.ones(SIZE),
        np.zeros(SIZE),
    ),
)
def test_all_singular_values_are_those_of_the_matrix(values):
    found = of_matrix(conditioned(values))
    np.testing.assert_allclose(found, values, atol=3e-6)


def test_a_matrix_with_fewer_rows_has_zeros():
    wide = np.zeros((ROWS, SIZE), np.float32)
    wide[:3] = np.random.default_rng(1).standard_normal((3, SIZE))
    known = np.linalg.svd(wide, compute_uv=False)
    np.testing.assert_allclose(of_matrix(wide), known, atol=3e-6)


def test_the_largest_needs_few_steps():
    found = of_matrix(conditioned([3.0, *np.linspace(1, 1.5, SIZE - 1)]), steps=5)
    assert found.shape == (5,) and found[0] == pytest.approx(3, rel=1e-3)
    assert found[-1] >= 1 - 1e-5


def test_eigenvalues_are_those_of_a_symmetric_matrix():
    matrix = np.random.default_rng(1).standard_normal((SIZE, SIZE))
    matrix = np.float32(matrix + matrix.T)  # of both signs
    np.testing.assert_allclose(
        of_symmetric(matrix), np.linalg.eigvalsh(matrix), atol=2e-5
    )
    known = np.array([-2.0, 1, 1, 1, 1, 1, 3, 5], np.float32)
    np.testing.assert_allclose(of_symmetric(np.diag(known)), known, atol=1e-5)


@pytest.mark.parametrize("steps", (0, 4))
def test_steps_are_those_of_the_vector(steps):
    with pytest.raises(ValueError, match=f"steps={steps} must be .* the 3 entries"):
        eigenvalues(lambda v: jnp.asarray(v), 3, RNG, steps=steps)
