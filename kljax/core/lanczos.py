"""Extreme eigenvalues of what can only be multiplied with: Lanczos, and Golub-Kahan.

A Jacobian of a network's gradient has as many rows as the network has parameters, and
is never made here: `singular_values` needs products with it and with its transpose,
`eigenvalues` products with a symmetric matrix. Both keep their basis orthogonal in
full, which costs O(d k) numbers in memory and O(d k^2) operations.

Letters: d entries of a vector, m of what it is mapped to, k steps.

Reference: Golub and Van Loan, "Matrix Computations" (4th edition, 2013), algorithms
10.1.1 (Lanczos) and 10.4.1 (Golub-Kahan).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from kljax.core.decompositions import one_at_a_time
from kljax.core.types import Array, Rng

# Of the largest number met so far: below it, a new direction is nothing but rounding.
NEGLIGIBLE = 16.0


def singular_values(
    forward: Callable[[Array], Array],
    transposed: Callable[[Array], Array],
    size: int,
    rng: Rng,
    *,
    steps: int,
) -> Array:
    """Computes singular values of a matrix J [m, d] by products alone, largest first.

    Of d steps they are all of its d singular values, each to about the rounding of the
    largest; those of a matrix with fewer rows are 0. Of fewer steps the first is the
    largest one in practice, and the last is no more than an upper bound of the least.

    Args:
      forward: ``[d] -> [m]``, the product with J.
      transposed: ``[m] -> [d]``, the product with its transpose.
      size: d.
      rng: draws where to begin, and where to go on from an invariant subspace.
      steps: k, 1 to d.

    Returns:
      [k], 0 or more.

    Raises:
      ValueError: for steps outside of 1 to d.
    """
    _check_steps(steps, size)
    rngs = jax.random.split(rng, steps + 1)
    first = _unit(rngs[0], jnp.zeros((0, size)))
    basis = jnp.zeros((steps + 1, size)).at[0].set(first)
    before = jnp.zeros_like(forward(first))

    def step(carry, number: Array):
        basis, before, beta, largest = carry
        vector = basis[number]
        image = forward(vector) - beta * before
        alpha = jnp.linalg.norm(image)
        largest = jnp.maximum(largest, alpha)
        there = alpha > _rounding(image.dtype) * largest
        image = jnp.where(there, image / jnp.where(there, alpha, 1.0), 0.0)
        alpha = jnp.where(there, alpha, 0.0)
        rest = _orthogonal(transposed(image) - alpha * vector, basis)
        beta = jnp.linalg.norm(rest)
        basis, beta = _extended(basis, number, rest, beta, largest, rngs[number + 1])
        return (basis, image, beta, jnp.maximum(largest, beta)), (alpha, beta)

    start = (basis, before, jnp.zeros(()), jnp.zeros(()))
    _, (alphas, betas) = jax.lax.scan(step, start, jnp.arange(steps))
    # J V = U B, with B upper bidiagonal.
    return _singular(jnp.diag(alphas) + jnp.diag(betas[:-1], k=1))


def eigenvalues(
    product: Callable[[Array], Array], size: int, rng: Rng, *, steps: int
) -> Array:
    """Computes eigenvalues of a symmetric matrix [d, d] by products alone, least first.

    Of d steps they are all of them, each to about the rounding of the largest in
    magnitude. Of fewer, the first is an upper bound of the least, and the last a lower
    bound of the largest.

    Args:
      product: ``[d] -> [d]``.
      size, rng, steps: see `singular_values`.

    Returns:
      [k].

    Raises:
      ValueError: for steps outside of 1 to d.
    """
    _check_steps(steps, size)
    rngs = jax.random.split(rng, steps + 1)
    first = _unit(rngs[0], jnp.zeros((0, size)))
    basis = jnp.zeros((steps + 1, size)).at[0].set(first)

    def step(carry, number: Array):
        basis, largest = carry
        image = product(basis[number])
        alpha = jnp.dot(basis[number], image)
        rest = _orthogonal(image, basis)
        beta = jnp.linalg.norm(rest)
        largest = jnp.maximum(largest, jnp.maximum(jnp.abs(alpha), beta))
        basis, beta = _extended(basis, number, rest, beta, largest, rngs[number + 1])
        return (basis, largest), (alpha, beta)

    start = (basis, jnp.zeros(()))
    _, (alphas, betas) = jax.lax.scan(step, start, jnp.arange(steps))
    beside = betas[:-1]
    return _symmetric(jnp.diag(alphas) + jnp.diag(beside, k=1) + jnp.diag(beside, k=-1))


def _check_steps(steps: int, size: int) -> None:
    if not 1 <= steps <= size:
        raise ValueError(
            f"steps={steps} must be at least 1, and at most the {size} entries of a "
            "vector"
        )


def _orthogonal(vector: Array, basis: Array) -> Array:
    """Takes out of a vector [d] what it has along a basis [k, d]; twice is enough."""
    for _ in range(2):
        vector = vector - basis.T @ (basis @ vector)
    return vector


def _unit(rng: Rng, basis: Array) -> Array:
    """Draws a direction orthogonal to a basis [k, d]."""
    vector = _orthogonal(jax.random.normal(rng, basis.shape[1:]), basis)
    return vector / jnp.linalg.norm(vector)


def _rounding(dtype) -> float:
    return NEGLIGIBLE * float(jnp.finfo(dtype).eps)


def _extended(basis, number, rest, beta, largest, rng) -> tuple[Array, Array]:
    """Adds the next direction; where nothing but rounding is left, a drawn one."""
    there = beta > _rounding(rest.dtype) * largest
    following = jnp.where(there, rest / jnp.where(there, beta, 1.0), _unit(rng, basis))
    # Behind the last step of a whole basis nothing is left to be drawn.
    following = jnp.where(jnp.isfinite(following), following, 0.0)
    return basis.at[number + 1].set(following), jnp.where(there, beta, 0.0)


@one_at_a_time
def _singular(matrix: Array) -> Array:
    return jnp.linalg.svd(matrix, compute_uv=False)


@one_at_a_time
def _symmetric(matrix: Array) -> Array:
    return jnp.linalg.eigvalsh(matrix)
