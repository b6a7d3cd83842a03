"""Features: what a classifier was fed, for every example of a batch.

The gradient of a dense layer's weights is ``X^T D``: inputs X [B, F] and derivatives by
the logits D [B, C], of which only the product is seen. Of rank B, it says in which
space of B dimensions the inputs lie: ``X = M U^T``, with U known and M [B, B] not. But
D follows from X, ``D = loss'(X W + b, labels)``, so B^2 numbers are sought that satisfy
B C equations: a nonlinear system, as small as the batch and whatever the network.

For one example it is the known closed form (`dense_input`). The view of a batch as a
gradient of low rank is that of Dimitrov et al. ("SPEAR", NeurIPS 2024), who tell the
examples apart by the zeros of ReLU; to do so by the loss is kljax's own.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kljax.attacks.closed_form.layer_input import (
    ROUNDING,
    Estimate,
    float64,
    to_float64,
)
from kljax.core.decompositions import one_at_a_time
from kljax.core.types import Array, Loss

STARTS, MOVES = 12, 60
MOST = 8  # examples that are worth the work, which grows with their sixth power
SMALL = 1e-6  # of the largest singular value: below it a direction does not count


class Features(NamedTuple):
    """What a classifier was fed, and what came back.

    Attributes:
      inputs: [B, F].
      signals: [B, C], derivatives of the loss by the logits.
      residual: [] share of the gradient, in squared norm, that is left unexplained.
    """

    inputs: Estimate
    signals: Estimate
    residual: Array


def classifier_inputs(
    kernel_grad: Array,
    bias_grad: Array,
    kernel: Array,
    bias: Array,
    targets: Array,
    *,
    loss: Loss,
) -> Features:
    """Finds what a classifier was fed, for every example of a batch.

    Computed in float64 whatever the arrays are, one victim at a time under `jax.vmap`.
    Arguments, results and errors are those of `batch_inputs`; in float32.
    """

    @one_at_a_time
    def find(*arrays: Array) -> Features:
        with float64(True):
            found = batch_inputs(*to_float64(arrays), loss)
            return jax.tree.map(lambda x: x.astype(jnp.float32), found)

    return find(kernel_grad, bias_grad, kernel, bias, targets)


def batch_inputs(
    kernel_grad: Array,
    bias_grad: Array,
    kernel: Array,
    bias: Array,
    targets: Array,
    loss: Loss,
) -> Features:
    """Takes the gradient of a classifier apart into that of each example.

    To be called within ``float64(True)``. Levenberg-Marquardt from several starts, of
    which the one that leaves least is taken. Examples of the same label come out in any
    order; if the network answers them alike, too, not at all: their variance says so.

    Args:
      kernel_grad: [F, C], gradient of the weights in Flax's layout.
      bias_grad: [C].
      kernel, bias: [F, C] and [C], the weights themselves.
      targets: [B, C], B < C.
      loss: of the client, ``(logits, targets) -> []``.

    Raises:
      ValueError: for as many examples as classes or more.
    """
    examples, classes = targets.shape
    if examples >= classes:
        raise ValueError(
            f"the gradient of a classifier of {classes} classes holds at most "
            f"{classes - 1} examples apart, got {examples}"
        )
    # A one is every example's last input, whose weight is the bias.
    grads = jnp.concatenate([kernel_grad, bias_grad[None]])
    weights = jnp.concatenate([kernel, bias[None]])
    left, sizes, _ = jnp.linalg.svd(grads, full_matrices=False)
    basis = left[:, :examples]
    seen, logits_of = basis.T @ grads, basis.T @ weights  # [B, C] each
    unit = jnp.max(jnp.abs(seen))

    def signals(mixing: Array) -> Array:
        return jax.grad(loss)(mixing @ logits_of, targets)

    def misfit(flat: Array) -> Array:
        mixing = flat.reshape(examples, examples)
        missed = (mixing.T @ signals(mixing) - seen) / unit
        ones = mixing @ basis[-1] - 1
        return jnp.concatenate([missed.reshape(-1), ones])

    def begin(made_up: Array) -> Array:
        # The signals of inputs that are made up, and the inputs that fit those best.
        guess = signals(made_up @ basis)
        return (jnp.linalg.pinv(guess.T, rtol=SMALL) @ seen.T).reshape(-1)

    def attempt(best: tuple[Array, Array], made_up: Array):
        flat, cost = levenberg_marquardt(misfit, begin(made_up), MOVES)
        better = cost < best[1]
        return (jnp.where(better, flat, best[0]), jnp.where(better, cost, best[1])), ()

    # The same for everybody, so that nothing here is random.
    made_up = np.random.default_rng(0).random((STARTS, examples, len(grads)))
    made_up[..., -1] = 1
    nothing = jnp.full(examples**2, jnp.nan, grads.dtype), jnp.full_like(unit, jnp.inf)
    (flat, cost), _ = jax.lax.scan(attempt, nothing, jnp.asarray(made_up, grads.dtype))
    mixing = flat.reshape(examples, examples)
    found = signals(mixing)

    # What remains says how far the client's own rounding goes.
    slope = jax.jacfwd(misfit)(flat)
    noise = ROUNDING**2 + cost / (examples * (classes + 1 - examples))
    spread = noise * jnp.linalg.pinv(slope.T @ slope, rtol=SMALL**2, hermitian=True)
    apart = spread.reshape(*[examples] * 4)
    of_mixing = jnp.einsum("fj,ijik,fk->if", basis, apart, basis)
    of_rounding = (ROUNDING * grads) ** 2 @ jnp.linalg.pinv(found, rtol=SMALL) ** 2
    by_mixing = jax.jacfwd(lambda flat: signals(flat.reshape(mixing.shape)))(flat)
    of_signals = jnp.einsum("icn,nm,icm->ic", by_mixing, spread, by_mixing)
    explained = basis @ (mixing.T @ found)
    return Features(
        Estimate((mixing @ basis.T)[:, :-1], (of_mixing + of_rounding.T)[:, :-1]),
        Estimate(found, of_signals + (ROUNDING * found) ** 2),
        jnp.sum((explained - grads) ** 2) / jnp.sum(sizes**2),
    )


def levenberg_marquardt(
    misfit: Callable[[Array], Array], start: Array, moves: int
) -> tuple[Array, Array]:
    """Minimises ``sum(misfit(x)^2)`` over x [n] from a start; gives x and the sum.

    A start from which no move leads down comes back as it was.
    """

    def move(_, state):
        x, cost, damping = state
        error, slope = misfit(x), jax.jacfwd(misfit)(x)
        square = slope.T @ slope
        damped = square + damping * jnp.diag(jnp.diag(square) + 1e-12)
        new = x - jnp.linalg.solve(damped, slope.T @ error)
        lower = jnp.sum(misfit(new) ** 2)
        accepted = lower < cost  # never by NaN
        return (
            jnp.where(accepted, new, x),
            jnp.where(accepted, lower, cost),
            jnp.clip(jnp.where(accepted, damping / 5, damping * 3), 1e-15, 1e9),
        )

    state = start, jnp.sum(misfit(start) ** 2), jnp.full_like(start[0], 1e-3)
    x, cost, _ = jax.lax.fori_loop(0, moves, move, state)
    return x, cost
