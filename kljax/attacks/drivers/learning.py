"""The descent of what an attacker learns before it sees an upload."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kljax.attacks.objectives import infinite_if_broken
from kljax.core.types import Array, PyTree


class Learned(NamedTuple):
    """Weights, and how their training went.

    Attributes:
      weights: at the point of the least error of validation.
      steps: [P] after how many steps the errors were measured.
      training: [P] error of the last batch then.
      validation: [P] error of what was held out then.
      best: [] int32, the point whose weights are kept: the first of the least.
    """

    weights: PyTree
    steps: Array
    training: Array
    validation: Array
    best: Array


def descend_on_batches(
    error: Callable[..., Array],
    weights: PyTree,
    optimiser: optax.GradientTransformation,
    draw_batch: Callable[[Array], tuple[PyTree, ...]],
    held_out: tuple[PyTree, ...],
    *,
    steps: int,
    points: int,
) -> Learned:
    """Trains weights on a batch of their own in each step; keeps the best.

    Args:
      error: ``(weights, *batch) -> []``.
      weights: at the start.
      optimiser: of optax.
      draw_batch: number of the step [] int32 -> batch.
      held_out: a batch that is not trained on.
      steps: 1 or more.
      points: P at most, at which the error of `held_out` is measured, the last at the
        end. One that is not finite is never the best.
    """

    def step(number: Array, carried):
        weights, state, _ = carried
        value, grads = jax.value_and_grad(error)(weights, *draw_batch(number))
        updates, state = optimiser.update(grads, state, weights)
        return optax.apply_updates(weights, updates), state, value

    def until(carried, bounds: Array):
        now, best = carried
        begin, end = bounds
        now = jax.lax.fori_loop(begin, end, step, now)
        value = error(now[0], *held_out)
        better = value < best[1]
        kept = jax.tree.map(
            lambda new, old: jnp.where(better, new, old), (now[0], value), best
        )
        return (now, kept), (now[2], value)

    ends = np.linspace(0, steps, min(points, steps) + 1).astype(np.int32)
    bounds = jnp.stack([ends[:-1], ends[1:]], axis=1)
    start = (weights, optimiser.init(weights), jnp.zeros(()))
    (_, (weights, _)), (training, validation) = jax.lax.scan(
        until, (start, (weights, jnp.inf)), bounds
    )
    best = jnp.argmin(infinite_if_broken(validation))
    return Learned(weights, ends[1:], training, validation, best)
