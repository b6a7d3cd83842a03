"""L-BFGS, as PyTorch does it and guarded: one evaluation per step.

A line search is a state of the optimiser (a rejected trial is shortened and tried again
at the next step), not a loop inside it: under `vmap` an inner loop would make all
victims wait for the slowest.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from kljax.attacks.attack import Optimiser
from kljax.core.types import Array, PyTree


class _Pairs(NamedTuple):
    """The last m moves s and gradient changes y: circular, oldest overwritten.

    Inner products are kept, so that a new pair costs one pass over the memory.
    """

    basis: Array  # [2m, n]: m moves, then m changes
    gram: Array  # [2m, 2m] inner products of the basis
    used: Array  # [m] bool
    count: Array  # [] int32, pairs ever stored
    scale: Array  # [] H0 = scale * identity


def _no_pairs(memory: int, like: Array) -> _Pairs:
    return _Pairs(
        basis=jnp.zeros((2 * memory, like.size), like.dtype),
        gram=jnp.zeros((2 * memory, 2 * memory), like.dtype),
        used=jnp.zeros(memory, bool),
        count=jnp.zeros((), jnp.int32),
        scale=jnp.ones((), like.dtype),
    )


def _remember(
    pairs: _Pairs, move: Array, change: Array, grads: Array, wanted: Array
) -> tuple[_Pairs, Array]:
    """Stores a pair, if it is wanted and curves upwards (y's > 1e-10, torch's floor).

    Returns:
      The pairs, and the inner products [2m] of all stored vectors with `grads`.
    """
    memory = pairs.used.size
    curvature = jnp.vdot(change, move)
    keep = wanted & (curvature > 1e-10)  # false for NaN, too
    slots = pairs.count % memory + jnp.array([0, memory])
    new = jnp.where(keep, jnp.stack([move, change]), pairs.basis[slots])
    basis = pairs.basis.at[slots].set(new)
    products = basis @ jnp.concatenate([new, grads[None]]).T
    gram = pairs.gram.at[slots].set(products[:, :2].T)
    gram = gram.at[:, slots].set(products[:, :2])
    pairs = _Pairs(
        basis=basis,
        gram=gram,
        used=pairs.used.at[slots[0]].set(keep | pairs.used[slots[0]]),
        count=pairs.count + keep,
        scale=jnp.where(keep, curvature / jnp.vdot(change, change), pairs.scale),
    )
    return pairs, products[:, 2]


def _direction(pairs: _Pairs, products: Array, grads: Array) -> Array:
    """Computes -H g by the two-loop recursion, on coefficients.

    Both loops only ever combine the 2m stored vectors and g, so they run on
    coefficients, given the vectors' inner products: the vectors themselves are read
    once instead of 4m times (Chen et al., "Large-scale L-BFGS using MapReduce",
    NeurIPS 2014). Storage order is circular, so ages are followed by index.
    """
    memory = pairs.used.size
    curvature = jnp.diagonal(pairs.gram, offset=memory)
    inverse = jnp.where(pairs.used, 1 / jnp.where(pairs.used, curvature, 1.0), 0.0)

    def newest_first(i, carry):
        coefficients, alphas = carry
        slot = (pairs.count - 1 - i) % memory
        product = pairs.gram[slot] @ coefficients + products[slot]
        alpha = inverse[slot] * product
        return coefficients.at[memory + slot].add(-alpha), alphas.at[slot].set(alpha)

    def oldest_first(i, coefficients):
        slot = (pairs.count + i) % memory
        row = memory + slot
        product = pairs.gram[row] @ coefficients + pairs.scale * products[row]
        return coefficients.at[slot].add(alphas[slot] - inverse[slot] * product)

    nothing = jnp.zeros(2 * memory, grads.dtype), jnp.zeros(memory, grads.dtype)
    coefficients, alphas = jax.lax.fori_loop(0, memory, newest_first, nothing)
    coefficients = jax.lax.fori_loop(
        0, memory, oldest_first, pairs.scale * coefficients
    )
    return -(coefficients @ pairs.basis + pairs.scale * grads)


class _FixedStep(NamedTuple):
    pairs: _Pairs
    grads: Array  # [n] at the previous iterate
    direction: Array  # [n] of the last move
    length: Array  # [] of the last move
    value: Array  # [] before the last move
    iteration: Array  # [] int32, ever
    inner: Array  # [] int32, within the present call of torch's step()


def lbfgs_torch(
    *,
    learning_rate: float = 1.0,
    max_iter: int = 20,
    max_eval: int | None = None,
    history: int = 100,
    tolerance_grad: float = 1e-7,
    tolerance_change: float = 1e-9,
) -> Optimiser:
    """Descends like ``torch.optim.LBFGS`` without line search, move for move.

    The step length is fixed; stopping rules end one of torch's ``step()`` calls, and
    the next call begins at the same point. One evaluation here is one evaluation of
    torch's closure, so DLG's 300 calls are at most 6,000 steps. Fixed steps can
    diverge; `lbfgs` is the one for use.

    Args:
      learning_rate: step length, except for the first move.
      max_iter: moves per call.
      max_eval: evaluations per call; None is torch's ``max_iter * 5 // 4``.
      history: number of pairs kept.
      tolerance_grad: a call ends when no entry of the gradient is larger. PyTorch's
        default now; 1e-5 in torch 1.4.
      tolerance_change: a call ends when the value or every unknown moves less.

    Reference: torch/optim/lbfgs.py, PyTorch 2.13; parity is tested on recorded runs.
    """

    most = max_iter * 5 // 4 if max_eval is None else max_eval

    def init(free: PyTree) -> _FixedStep:
        flat, _ = ravel_pytree(free)
        zero = jnp.zeros((), jnp.int32)
        return _FixedStep(
            pairs=_no_pairs(history, flat),
            grads=jnp.zeros_like(flat),
            direction=jnp.zeros_like(flat),
            length=jnp.zeros((), flat.dtype),
            value=jnp.zeros((), flat.dtype),
            iteration=zero,
            inner=zero,
        )

    def step(free: PyTree, state: _FixedStep, value: Array, grads: PyTree):
        x, unravel = ravel_pytree(free)
        g, _ = ravel_pytree(grads)
        flat_enough = jnp.max(jnp.abs(g)) <= tolerance_grad
        moved = jnp.max(jnp.abs(state.length * state.direction))
        stalled = (moved <= tolerance_change) | (
            jnp.abs(value - state.value) < tolerance_change
        )
        spent = state.inner + 1 >= most
        stop = flat_enough | ((state.inner > 0) & (stalled | spent))

        first = state.iteration == 0
        move = state.length * state.direction
        pairs, products = _remember(
            state.pairs, move, g - state.grads, g, ~first & ~stop
        )
        direction = _direction(pairs, products, g)
        shrink = jnp.minimum(1.0, 1 / jnp.sum(jnp.abs(g)))
        length = learning_rate * jnp.where(first, shrink, 1.0)
        # Not "<=": with NaN torch goes on moving, and so does this.
        descends = ~(jnp.vdot(g, direction) > -tolerance_change)
        moves = _FixedStep(
            pairs=(),
            grads=g,
            direction=direction,
            length=length,
            value=value,
            iteration=state.iteration + 1,
            inner=jnp.where(descends, (state.inner + 1) % max_iter, 0),
        )
        stays = state._replace(pairs=(), inner=jnp.zeros_like(state.inner))
        state = jax.tree.map(lambda s, m: jnp.where(stop, s, m), stays, moves)
        state = state._replace(pairs=pairs)
        x = jnp.where(stop | ~descends, x, x + length * direction)
        return unravel(x), state

    return Optimiser(init, step)


class _Safeguarded(NamedTuple):
    pairs: _Pairs
    point: Array  # [n] last accepted
    grads: Array  # [n] there
    direction: Array  # [n] from there
    length: Array  # [] of the trial under way
    slope: Array  # [] g'd at the accepted point
    values: Array  # [window] accepted values, circular
    accepted: Array  # [] int32, ever
    rejected: Array  # [] int32, in a row


def lbfgs(*, memory: int = 20, window: int = 10, patience: int = 8) -> Optimiser:
    """Descends by L-BFGS with unit steps, guarded against divergence.

    A trial is accepted if its value is finite and sufficiently below the largest of
    the last `window` accepted values (a non-monotone Armijo rule: fixed steps make
    DLG fast because they may climb a little, and break because they may climb without
    end). A rejected trial is shortened to a quarter and tried again from the accepted
    point. After `patience` rejections in a row the memory is emptied and the descent
    begins anew from the accepted point.

    Args:
      memory: pairs kept.
      window: 1 is the monotone rule.
      patience: rejections in a row before the memory is emptied.

    Reference: Grippo, Lampariello, Lucidi, "A nonmonotone line search technique for
      Newton's method" (SIAM J. Numer. Anal. 1986).
    """

    def init(free: PyTree) -> _Safeguarded:
        flat, _ = ravel_pytree(free)
        zeros, zero = jnp.zeros_like(flat), jnp.zeros((), flat.dtype)
        return _Safeguarded(
            pairs=_no_pairs(memory, flat),
            point=flat,
            grads=zeros,
            direction=zeros,
            length=zero,
            slope=zero,
            # The first value is accepted whatever it is, if it is finite.
            values=jnp.full(window, jnp.finfo(flat.dtype).max).at[1:].set(-jnp.inf),
            accepted=jnp.zeros((), jnp.int32),
            rejected=jnp.zeros((), jnp.int32),
        )

    def step(free: PyTree, state: _Safeguarded, value: Array, grads: PyTree):
        x, unravel = ravel_pytree(free)
        g, _ = ravel_pytree(grads)
        bound = jnp.max(state.values) + 1e-4 * state.length * state.slope
        accept = (value <= bound) & jnp.all(jnp.isfinite(g))

        point = jnp.where(accept, x, state.point)
        grads_there = jnp.where(accept, g, state.grads)
        pairs, products = _remember(
            state.pairs,
            x - state.point,
            g - state.grads,
            grads_there,
            accept & (state.accepted > 0),
        )
        weary = state.rejected + 1 >= patience
        forget = ~accept & weary
        pairs = pairs._replace(
            used=pairs.used & ~forget,
            count=jnp.where(forget, 0, pairs.count),
            scale=jnp.where(forget, 1.0, pairs.scale),
        )
        direction = _direction(pairs, products, grads_there)
        slope = jnp.vdot(grads_there, direction)
        fresh = accept | forget
        # Without memory the direction has the gradient's length: begin carefully.
        careful = jnp.minimum(1.0, 1 / jnp.sum(jnp.abs(grads_there)))
        start = jnp.where(jnp.any(pairs.used), 1.0, careful)
        length = jnp.where(fresh, start, state.length / 4)
        values = state.values.at[state.accepted % window].set(
            jnp.where(accept, value, state.values[state.accepted % window])
        )
        state = _Safeguarded(
            pairs=pairs,
            point=point,
            grads=grads_there,
            direction=direction,
            length=length,
            slope=slope,
            values=values,
            accepted=state.accepted + accept,
            rejected=jnp.where(fresh, 0, state.rejected + 1),
        )
        return unravel(point + length * direction), state

    return Optimiser(init, step)
