"""Trigger inversion: the smallest trigger by which a network answers as one likes.

Triggers are looked for of all classes, and of all pairs of classes, side by side in one
program. A trigger is a mask m and a pattern p, ``x' = (1 - m) x + m p``, both through
tanh. Letters: Kc classes, m examples of each, images of H x W pixels and C channels.

Reference: Zhang et al., "FLIP: A Provable Defense Framework for Backdoor Mitigation in
Federated Learning" (ICLR 2023), whose code KaiyuanZh/FLIP, invert_MNIST.py, settles the
numbers below; after Wang et al., "Neural Cleanse" (IEEE S&P 2019). Differs from the
code: every step takes all examples that were drawn, and of pairs the mean of their
losses; a better trigger is kept, and the descent goes on from where it was, where the
code restarts it there with noise of .01 a pixel.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kljax.core.randomness import derive_rng
from kljax.core.types import Array, Gates, Model, Params, PyTree, Rng, Stats
from kljax.data.triggers import Overlay, lay_over

ADAM = optax.adam(0.1, b1=0.5, b2=0.9)
COST = 1e-3  # c at the start: of a pixel of the mask
DEARER, CHEAPER = 1.5, 1.5**1.5  # what c is multiplied by, or divided
PATIENCE = 10  # steps in a row with success, or without, before c changes
SUCCESS = 0.9  # share of examples that a trigger has to turn
EDGE = 1e-3  # how far the first mask and pattern stay from 0 and 1
# 1 / 0.6745, by which a median absolute deviation is a normal standard deviation.
NORMAL = 1.4826
# What the random key of `invert_pairs` is for.
PURPOSES = ("examples", "classes", "pairs")

Classify = Callable[[Array], Array]  # images [n, H, W, C] -> logits [n, Kc]


class Inverted(NamedTuple):
    """Triggers that were found; leading axes say of which classes.

    Attributes:
      overlay: mask [..., H, W, 1] and pattern [..., H, W, C], of the smallest trigger
        that succeeded; of the last one where none did.
      size: [...] sum of its mask, in pixels; infinite where none succeeded.
      success: [...] share of its examples that it turned.
    """

    overlay: Overlay
    size: Array
    success: Array


class Schedule(NamedTuple):
    """What a pixel of the mask costs, and since when a trigger has (not) succeeded."""

    cost: Array
    above: Array  # steps in a row with success
    below: Array  # steps in a row without


def first_schedule() -> Schedule:
    """Makes the schedule before the first step."""
    return Schedule(jnp.float32(COST), jnp.int32(0), jnp.int32(0))


def next_schedule(now: Schedule, succeeded: Array) -> Schedule:
    """Makes pixels dearer after `PATIENCE` successes in a row, cheaper after failures.

    Args:
      now: before a step.
      succeeded: [] bool, whether the trigger of that step did.
    """
    above = jnp.where(succeeded, now.above + 1, 0)
    below = jnp.where(succeeded, 0, now.below + 1)
    dearer, cheaper = above >= PATIENCE, below >= PATIENCE
    cost = jnp.where(dearer, now.cost * DEARER, now.cost)
    cost = jnp.where(cheaper, cost / CHEAPER, cost)
    return Schedule(cost, jnp.where(dearer, 0, above), jnp.where(cheaper, 0, below))


def squash(raw: Overlay) -> Overlay:
    """Makes a mask and a pattern in (0, 1) of any numbers."""
    return Overlay(*((jnp.tanh(x) + 1) / 2 for x in raw))


def draw_start(rng: Rng, shape: tuple[int, int, int]) -> Overlay:
    """Draws a mask and a pattern, uniform in (0, 1), as `squash` is given them."""

    def draw(rng: Rng, shape: tuple[int, ...]) -> Array:
        drawn = jax.random.uniform(rng, shape, minval=EDGE, maxval=1 - EDGE)
        return jnp.arctanh(2 * drawn - 1)

    rngs = jax.random.split(rng)
    return Overlay(draw(rngs[0], (*shape[:2], 1)), draw(rngs[1], shape))


def invert(
    classify: Classify,
    images: Array,
    there: Array,
    target: Array,
    start: Overlay,
    steps: int,
) -> tuple[Inverted, Overlay]:
    """Looks for the smallest trigger that turns images into a class.

    Args:
      classify: the network.
      images: [n, H, W, C] in [0, 1].
      there: [n] bool, which images count; of none, no trigger succeeds.
      target: [] the class.
      start: as `draw_start` draws it.
      steps: of Adam.

    Returns:
      What was found, and what makes it by `squash`.
    """
    count = jnp.maximum(jnp.sum(there), 1)

    def mean(values: Array) -> Array:
        return jnp.sum(jnp.where(there, values, 0.0)) / count

    def objective(raw: Overlay, cost: Array) -> tuple[Array, tuple[Array, Array]]:
        overlay = squash(raw)
        logits = classify(lay_over(images, overlay))
        wanted = jnp.full(logits.shape[0], target)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, wanted)
        size = jnp.sum(overlay.mask)
        turned = mean(jnp.argmax(logits, axis=-1) == target)
        return mean(loss) + cost * size, (size, turned)

    def step(carry, _):
        raw, memory, schedule, best, size, success = carry
        slopes, (new_size, turned) = jax.grad(objective, has_aux=True)(
            raw, schedule.cost
        )
        succeeded = turned >= SUCCESS
        better = succeeded & (new_size < size)
        # Until one succeeds, the last one stands for it.
        shown = better | jnp.isinf(size)
        best = jax.tree.map(lambda x, y: jnp.where(shown, x, y), raw, best)
        success = jnp.where(shown, turned, success)
        size = jnp.where(better, new_size, size)
        moves, memory = ADAM.update(slopes, memory)
        raw = optax.apply_updates(raw, moves)
        schedule = next_schedule(schedule, succeeded)
        return (raw, memory, schedule, best, size, success), None

    nothing = jnp.float32(jnp.inf), jnp.float32(0)
    began = start, ADAM.init(start), first_schedule(), start, *nothing
    (_, _, _, best, size, success), _ = jax.lax.scan(step, began, length=steps)
    return Inverted(squash(best), size, success), best


def draw_by_class(
    rng: Rng, images: Array, labels: Array, there: Array, classes: int, examples: int
) -> tuple[Array, Array]:
    """Draws m examples of each class, without putting one back.

    Args:
      images, labels, there: [n, H, W, C], [n], and [n] whether an example is one.
      examples: m, or n where that is less.

    Returns:
      Images [Kc, m, H, W, C], and [Kc, m] whether they are of that class: a class that
      has fewer is filled up with others.
    """
    of_class = (labels[None] == jnp.arange(classes)[:, None]) & there[None]
    drawn = jax.random.uniform(rng, of_class.shape)
    order, chosen = jax.lax.top_k(
        jnp.where(of_class, drawn, -1.0), min(examples, labels.shape[0])
    )
    return jnp.asarray(images)[chosen], order >= 0


def invert_pairs(
    rng: Rng,
    classify: Classify,
    images: Array,
    labels: Array,
    there: Array,
    classes: int,
    *,
    examples: int,
    steps: int,
    pair_steps: int,
) -> tuple[Inverted, Inverted]:
    """Looks for triggers of all classes, then of all pairs of classes, side by side.

    A trigger of a class turns the examples of all others into it, and starts at random.
    One of a pair (s, t) turns those of s into t, and starts at that of t if that
    succeeded.

    Args:
      rng: of the examples and the starts.
      classify: the network.
      images, labels, there: see `draw_by_class`.
      classes: Kc.
      examples: m, of each class.
      steps, pair_steps: of the search for a class, and for a pair.

    Returns:
      What was found for targets [Kc], and for pairs [Kc, Kc], by source and target. On
      the diagonal nothing succeeds.
    """

    def rng_of(purpose: str) -> Rng:
        return derive_rng(rng, PURPOSES, purpose)

    drawn, real = draw_by_class(
        rng_of("examples"), images, labels, there, classes, examples
    )
    shape, targets = images.shape[1:], jnp.arange(classes)

    def starts(purpose: str, count: int) -> Overlay:
        rngs = jax.random.split(rng_of(purpose), count)
        return jax.vmap(lambda rng: draw_start(rng, shape))(rngs)

    everyone = drawn.reshape(-1, *shape)

    def of_class(target: Array, start: Overlay) -> tuple[Inverted, Overlay]:
        others = real & (targets != target)[:, None]
        return invert(classify, everyone, others.ravel(), target, start, steps)

    found, best = jax.vmap(of_class)(targets, starts("classes", classes))
    first, second = np.nonzero(~np.eye(classes, dtype=bool))
    succeeded = jnp.isfinite(found.size)[second]

    def begin(best: Array, drawn: Array) -> Array:
        wide = succeeded.reshape(-1, *[1] * (best.ndim - 1))
        return jnp.where(wide, best[second], drawn)

    begun = jax.tree.map(begin, best, starts("pairs", len(first)))

    def of_pair(source: Array, target: Array, start: Overlay) -> Inverted:
        given = drawn[source], real[source], target, start
        return invert(classify, *given, pair_steps)[0]

    pairs = jax.vmap(of_pair)(jnp.array(first), jnp.array(second), begun)

    def as_table(values: Array, missing: float) -> Array:
        table = jnp.full((classes, classes, *values.shape[1:]), missing)
        return table.at[first, second].set(values)

    overlay = Overlay(*(as_table(x, 0.0) for x in pairs.overlay))
    return found, Inverted(
        overlay, as_table(pairs.size, jnp.inf), as_table(pairs.success, 0.0)
    )


@functools.partial(
    jax.jit, static_argnames=("model", "classes", "examples", "steps", "pair_steps")
)
def invert_triggers(
    rng: Rng,
    model: Model,
    params: Params,
    stats: Stats,
    images: Array,
    labels: Array,
    gates: Gates | None = None,
    *,
    classes: int,
    examples: int = 16,
    steps: int = 500,
    pair_steps: int = 200,
) -> tuple[Inverted, Inverted]:
    """Looks for triggers of a network, norms in evaluation mode; see `invert_pairs`.

    The same model, shapes and numbers again compile nothing again.
    """

    def classify(images: Array) -> Array:
        given = {"gates": gates or {}, "train": False}
        return model.apply(params, stats, images, **given).logits

    return invert_pairs(
        rng,
        classify,
        images,
        labels,
        jnp.ones(labels.shape, bool),
        classes,
        examples=examples,
        steps=steps,
        pair_steps=pair_steps,
    )


def anomaly_index(sizes: PyTree, pixels: int) -> np.ndarray:
    """Computes how much smaller each trigger is than the median one.

    In units of the median absolute deviation, scaled to be a standard deviation of
    normal numbers. The trigger of a backdoor's class is much smaller than others: above
    2 is what Neural Cleanse calls one.

    Args:
      sizes: [Kc] of the triggers of classes, in pixels; one that did not succeed is as
        large as an image.
      pixels: H x W.

    Returns:
      [Kc], positive for less than the median; 0 for all where more than half of the
      sizes are alike.

    Reference: Wang et al., "Neural Cleanse" (IEEE S&P 2019), section IV.
    """
    sizes = np.asarray(sizes, np.float64)
    sizes = np.where(np.isfinite(sizes), sizes, pixels)
    below = np.median(sizes) - sizes
    deviation = NORMAL * np.median(np.abs(below))
    return below / deviation if deviation > 0 else np.zeros_like(below)
