"""The input of a layer, by least squares from its output and its weight gradient.

A layer ``out = W x + b`` is seen from two sides. Forward: ``W x = out - b``, where the
output follows from the layer above. Backward: the weight gradient is ``K x = g``, where
K is made of the back-propagated signal. Both are linear in x, and stacked they often
determine it (Zhu and Blaschko, "R-GAP", ICLR 2021, section 3).

Two things are kljax's own. K is the same for all channels of x, so it is decomposed
once for one channel, and only as many equations as there are outputs couple the
channels. And every equation is weighted by how far it can be trusted: each quantity
comes with a variance that starts as float32's rounding and is propagated, so that a
saturated unit, whose inverse activation says nothing, is not listened to.

All of it runs in float64: `float64` opens it inside a function that is otherwise
float32, under `jax.jit` and `jax.vmap`, too.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kljax.core.types import Array, PyTree
from kljax.models.chain import Layer

ROUNDING = 2.0**-24  # float32: what the client computed with, relative

float64 = jax.enable_x64


class Estimate(NamedTuple):
    """Numbers, and how uncertain each is."""

    mean: Array
    variance: Array  # the same shape


class Solution(NamedTuple):
    """A layer's input as it was solved for.

    Letters: P positions, C channels of the input.

    Attributes:
      x: [P, C].
      residual: [] share of the weight gradient, in squared norm, left unexplained.
      rank: [] how many of the P x C unknowns the equations determine: a direction
        counts as much as its variance fell below the one expected beforehand.
    """

    x: Estimate
    residual: Array
    rank: Array


def to_float64(tree: PyTree) -> PyTree:
    """Converts arrays; to be called within ``float64(True)``."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf).astype(jnp.float64), tree)


def pairing(layer: Layer, kernel: tuple[int, ...], size: tuple[int, ...]) -> np.ndarray:
    """Tells which input meets which weight in which output.

    Args:
      layer: the layer.
      kernel: shape [..., C, F] of its kernel.
      size: shape of its input without channels; () for a dense layer.

    Returns:
      T [Q, M, P] of one channel, such that ``out[q, f] = sum_{m, p, c} T[q, m, p]
      kernel[m, c, f] x[p, c]``: the layer as JAX sees it, which is linear in its
      kernel and in its input.
    """
    return _pairing(layer.linear, kernel[:-2], size)


@functools.lru_cache(maxsize=256)
def _pairing(linear: Callable, window: tuple[int, ...], size: tuple[int, ...]):
    def table(kernel: Array, x: Array) -> Array:
        return jax.jacfwd(jax.jacrev(linear), argnums=1)(kernel, x)

    zeros = np.zeros((*window, 1, 1), np.float32), np.zeros((*size, 1), np.float32)
    # Compiled and called, it gives numbers even while something else is traced.
    made = jax.jit(table).lower(*zeros).compile()(*zeros)
    return np.asarray(made).reshape(-1, math.prod(window), math.prod(size))


def forward_matrix(table: Array, kernel: Array) -> Array:
    """Makes W [Q, F, P, C]: ``out[q, f] = sum_{p, c} W[q, f, p, c] x[p, c]``."""
    flat = kernel.reshape(-1, *kernel.shape[-2:])
    return jnp.einsum("qmp,mcf->qfpc", table, flat)


def backward_matrix(table: Array, signal: Array) -> Array:
    """Makes K [M, F, P]: ``grad[m, c, f] = sum_p K[m, f, p] x[p, c]``.

    Args:
      table: of `pairing`.
      signal: [Q, F], derivative of the loss by the layer's output.
    """
    return jnp.einsum("qmp,qf->mfp", table, signal)


def solve(
    table: Array,
    forward: Array,
    out: Estimate,
    signal: Estimate,
    grad: Array,
    centre: float,
    spread: float,
) -> Solution:
    """Solves for a layer's input.

    Args:
      table: of `pairing`.
      forward: [Q, F, P, C], of `forward_matrix`.
      out: [Q, F] the layer's output, its bias taken off.
      signal: [Q, F] derivative of the loss by that output.
      grad: gradient [..., C, F] of the kernel.
      centre, spread: mean and standard deviation that every entry of x is believed to
        have beforehand; what no equation determines stays there.

    Returns:
      The minimiser of all squared errors, each in units of its standard deviation
      (in other words, the mean of a Gaussian posterior) and its variance.
    """
    positions, channels = forward.shape[2:]
    grad = grad.reshape(-1, *grad.shape[-2:])  # [M, C, F]
    backward = backward_matrix(table, signal.mean)  # [M, F, P]
    # Of one equation, whatever the channel: what rounding and the signal's own
    # uncertainty make of it for inputs of the expected size.
    power = centre**2 + spread**2
    noise = ROUNDING**2 * jnp.mean(grad**2, axis=1)
    noise += power * jnp.einsum(
        "qmp,qf->mf", table, signal.variance + (ROUNDING * signal.mean) ** 2
    )
    weight = jnp.where(noise > 0, 1 / jnp.sqrt(jnp.where(noise > 0, noise, 1)), 0)
    rows = (backward * weight[..., None]).reshape(-1, positions)
    known = (jnp.moveaxis(grad, 1, 2) * weight[..., None]).reshape(-1, channels)

    # First the gradient's equations, diagonal in the basis of K's singular vectors.
    left, values, right = _svd(rows)
    variance = 1 / (values**2 + spread**-2)  # [P], of every channel
    mean = variance[:, None] * (values[:, None] * (left.T @ known))
    mean += (variance * spread**-2 * (right @ jnp.full(positions, centre)))[:, None]

    # Then the forward equations: Q F of them, however many unknowns there are.
    rotated = jnp.einsum("qfpc,rp->qfrc", forward, right)
    rotated = rotated.reshape(-1, positions, channels)
    deviation = jnp.sqrt(out.variance).reshape(-1)
    rotated = rotated / deviation[:, None, None]
    predicted = jnp.einsum("nrc,rc->n", rotated, mean)
    innovation = out.mean.reshape(-1) / deviation - predicted
    gain = rotated * variance[None, :, None]
    covariance = gain.reshape(len(gain), -1) @ rotated.reshape(len(gain), -1).T
    lower = jnp.linalg.cholesky(covariance + jnp.eye(len(gain)))
    halves = jax.scipy.linalg.solve_triangular(
        lower, gain.reshape(len(gain), -1), lower=True
    )
    whitened = jax.scipy.linalg.solve_triangular(lower, innovation, lower=True)
    mean = mean + (whitened @ halves).reshape(positions, channels)

    x = right.T @ mean
    halves = jnp.einsum("nrc,rp->npc", halves.reshape(gain.shape), right)
    spreads = (right**2).T @ variance
    variance = jnp.maximum(spreads[:, None] - jnp.sum(halves**2, axis=0), 0)
    left_over = jnp.einsum("mfp,pc->mcf", backward, x) - grad
    return Solution(
        x=Estimate(x, variance),
        residual=jnp.sum(left_over**2) / jnp.sum(grad**2),
        rank=x.size - jnp.sum(variance) / spread**2,
    )


def _svd(rows: Array) -> tuple[Array, Array, Array]:
    """Decomposes [N, P] into [N, P], [P], [P, P], with zeros where N < P."""
    missing = max(rows.shape[1] - rows.shape[0], 0)
    square = jnp.pad(rows, ((0, missing), (0, 0)))
    left, values, right = jnp.linalg.svd(square, full_matrices=False)
    return left[: rows.shape[0]], values, right


def through(
    activation_slope: Callable[[Array], Array], value: Estimate, above: Estimate
) -> Estimate:
    """Sends a derivative back through an activation.

    Args:
      activation_slope: ``value -> derivative``.
      value: of the activation.
      above: derivative of the loss by that value.
    """
    slope = activation_slope(value.mean)
    bend = jnp.reshape(
        jax.jvp(activation_slope, (value.mean,), (jnp.ones_like(value.mean),))[1],
        slope.shape,
    )
    mean = slope * above.mean
    variance = slope**2 * above.variance + (bend * above.mean) ** 2 * value.variance
    return Estimate(mean, variance + (ROUNDING * mean) ** 2)
