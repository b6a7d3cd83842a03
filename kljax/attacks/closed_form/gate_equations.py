"""Gates that a set of pairs has in common, from linear equations of some of them.

Letters: d width, N pairs. Each has a vector x that is gated: ``v = scale * x + shift``.

What a span leaves out of v is linear in the gates. Which of the pairs obey is not known
beforehand: those that do not are found by least squares that are reweighted until they
have no weight.

Reference: of the reweighting, Holland and Welsch, "Robust regression using iteratively
reweighted least-squares" (1977).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from kljax.core.types import Array, Gate

ROUNDS = 10  # of reweighting
SHRINK = 0.7  # of the error that counts as usual, from round to round
LEAST = 1e-5  # relative error below which all pairs weigh alike: float32's rounding
FITS = 1e-3  # relative error of a pair that is there
DOUBTFUL = 1e-2  # weight of a pair that fits, and that nothing else shows
RIDGE = 1e-13  # of float64: keeps unknowns that no equation has from being infinite
CLEAR = 100  # times `RIDGE`, what an equation gives an unknown at least


class Equations(NamedTuple):
    """Linear equations of ``v = scale * x + shift``, ``A v + a = 0``, squared.

    Attributes:
      square: [d, d] ``A^T A``, the same of all pairs.
      linear: [N, d] ``A^T a``.
      constant: [N] ``a^T a``.
    """

    square: Array
    linear: Array
    constant: Array


def make_equations(matrix: Array, offsets: Array) -> Equations:
    """Makes equations ``A v + a = 0`` of A [m, d] and a [N, m]."""
    return Equations(matrix.T @ matrix, offsets @ matrix, jnp.sum(offsets**2, axis=1))


def solve_gates(
    equations: tuple[Equations, ...], x: Array, weights: tuple[Array, ...]
) -> tuple[Gate, Array]:
    """Solves weighted equations of pairs for their gate, by least squares.

    Args:
      equations: of one kind or more.
      x: [N, d] what is gated.
      weights: [N] of pairs, for each kind.

    Returns:
      The gate, and the matrix [2 d, 2 d] of the normal equations.
    """
    width = x.shape[1]
    matrix, right = jnp.zeros((2 * width, 2 * width)), jnp.zeros(2 * width)
    for each, own in zip(equations, weights, strict=True):
        moments, along, total = (x * own[:, None]).T @ x, own @ x, jnp.sum(own)
        crossed = along[:, None] * each.square
        matrix += jnp.block(
            [[each.square * moments, crossed], [crossed.T, each.square * total]]
        )
        linear = own[:, None] * each.linear
        right -= jnp.concatenate([jnp.sum(x * linear, axis=0), jnp.sum(linear, axis=0)])
    size = jnp.maximum(jnp.max(jnp.diag(matrix)), 1e-30)
    matrix += RIDGE * size * jnp.eye(2 * width)
    return Gate(*jnp.linalg.solve(matrix, right).reshape(2, width)), matrix


def measure_errors(equations: Equations, fed: Array) -> Array:
    """Gives [N] lengths of ``A v + a`` of v [N, d]."""
    quadratic = jnp.sum((fed @ equations.square) * fed, axis=1)
    squares = quadratic + 2 * jnp.sum(fed * equations.linear, axis=1)
    return jnp.sqrt(jnp.maximum(squares + equations.constant, 0))


def reweighted(errors: Array, weights: Array) -> Array:
    """Gives [N] smaller weights to larger errors, and next to none to the largest."""
    usual = jnp.sqrt(_mean(errors**2, weights))
    return (1 + (errors / jnp.maximum(SHRINK * usual, LEAST)) ** 2) ** -2


def _mean(values: Array, weights: Array) -> Array:
    """Gives the weighted mean over the first axis; 0 where no weight is left."""
    return weights @ values / jnp.maximum(jnp.sum(weights), 1e-30)


def find_pairs(square: Array, x: Array, weights: Array) -> tuple[Array, Array]:
    """Finds pairs that have a scale in common under which they differ in the span.

    What is outside of the span in ``scale * x`` is then the same of all pairs: of the
    weighted covariance C of their x, ``scale^T (square * C) scale`` is 0. The scale is
    found up to a factor; that of the shift which is in the span has no part in it.

    Args:
      square: [d, d] projection out of the span.
      x: [N, d] what is gated.
      weights: [N] of pairs, to begin with.

    Returns:
      weights [N] of those that fit, and the errors [N] of all, relative.
    """

    def measure(weights: Array) -> Array:
        centred = x - _mean(x, weights)[None]
        covariance = (centred * weights[:, None]).T @ centred
        covariance /= jnp.maximum(jnp.sum(weights), 1e-30)
        scale = jnp.linalg.eigh(square * covariance)[1][:, 0]
        moved = centred * scale[None]
        squares = jnp.sum((moved @ square) * moved, axis=1)
        lengths = jnp.maximum(jnp.sum((x * scale[None]) ** 2, axis=1), 1e-30)
        return jnp.sqrt(jnp.maximum(squares, 0) / lengths)

    def step(_, weights: Array) -> Array:
        return reweighted(measure(weights), weights)

    weights = jax.lax.fori_loop(0, ROUNDS, step, weights)
    return weights, measure(weights)


class Fit(NamedTuple):
    """A gate, and how well it explains the pairs it was fitted to."""

    gate: Gate
    deviation: Gate  # standard deviation expected of each number
    residual: Array  # [] share of the pairs' gated x, in squared norm, not explained
    fits: Array  # [N] bool, pairs that the attention's equations fit
    first_fits: Array  # [] bool, whether any pair fits those of the first place
    determined: Array  # [] bool, whether the equations have one solution


def fit_gates(
    of_attention: Equations,
    of_first: Equations,
    x: Array,
    near: Array,
    is_first: Array,
) -> Fit:
    """Fits a gate to the pairs that have one in common.

    Args:
      of_attention: equations of all pairs, with a scale up to a factor, and a shift up
        to what is in the span.
      of_first: equations of pairs at the first place.
      x: [N, d] what is gated.
      near: [N] weights of pairs, to begin with.
      is_first: [N] 1 for pairs at the first place, and else 0.
    """
    weights, errors = find_pairs(of_attention.square, x, near)
    kinds = of_attention, of_first

    def solve(first: Array) -> tuple[Gate, Array, Array]:
        gate, matrix = solve_gates(kinds, x, (weights, first))
        fed = x * gate.scale[None] + gate.shift[None]
        return gate, matrix, fed

    def step(_, first: Array) -> Array:
        _, _, fed = solve(first)
        known = is_first * weights
        return known * reweighted(measure_errors(of_first, fed), first)

    # A pair that fits the attention need not be there: those that are near count more.
    start = is_first * weights * jnp.maximum(near, DOUBTFUL)
    first = jax.lax.fori_loop(0, ROUNDS, step, start)
    gate, matrix, fed = solve(first)
    each = [measure_errors(kind, fed) for kind in kinds]
    squares = jnp.concatenate([each[0] ** 2, each[1] ** 2])
    spread = _mean(squares, jnp.concatenate([weights, first]))
    powers, directions = jnp.linalg.eigh(matrix)
    variances = directions**2 @ (1 / powers) * spread
    deviation = Gate(*jnp.sqrt(jnp.maximum(variances, 0)).reshape(2, -1))
    fits = errors <= FITS
    first_fits = jnp.any(fits & (is_first > 0) & (each[1] <= FITS))
    residual = _mean(errors**2, weights)
    determined = powers[0] > CLEAR * RIDGE * powers[-1]
    return Fit(gate, deviation, residual, fits, first_fits, determined)
