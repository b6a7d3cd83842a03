"""Accuracy: what share a model with given gates gets right, or explains."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kljax.core.targets import TargetSpec
from kljax.core.trees import list_columns, map_columns
from kljax.core.types import Array, Gates, Model, Params, PyTree, Stats

# Examples per forward pass: a speed option. On a CPU 100 take half the time of 500
# (LeNet at 32x32): their patches stay in the cache.
BATCH = 100


class Examples(NamedTuple):
    """Labelled inputs."""

    inputs: PyTree  # [n, H, W, C] in [0, 1], of images
    labels: Array  # [n] integers in [0, Kc), or other targets as a dataset has them


def accuracy(
    model: Model,
    params: Params,
    stats: Stats,
    gates: Gates,
    images: Array,
    labels: Array,
    *,
    targets: TargetSpec | None = None,
    batch: int = BATCH,
) -> float:
    """Computes the share of examples whose largest logit is that of the label.

    Of other targets than classes it is what `TargetSpec.measure` names. Norm layers use
    their running statistics. Examples are taken in batches of equal size; the last one
    is filled up, and what fills it is not counted.

    Args:
      model: the network; the same object again compiles nothing again.
      params, stats: its public weights and norm statistics.
      gates: of every site; the same sites again compile nothing again.
      images: [n, H, W, C] in [0, 1].
      labels: [n] integers in [0, Kc), or other targets.
      targets: what they are; None for classes.
      batch: examples per forward pass; a speed option.

    Returns:
      The number of right answers divided by n. An answer with a NaN is wrong. Among
      equal logits the first class is the answer. Of R2, answers with a NaN make NaN.

    Raises:
      ValueError: for no examples, unequal numbers of images and labels, labels that
        are not integers [n], or not of the shape that `targets` says, numbers that are
        all alike, of which there is no R2, or a batch below 1.

    Differs from FedKL, which divides by more than n: `fedkl_accuracy_factor`.
    """
    batches = in_batches(Examples(images, labels), "accuracy", batch, targets)
    return measure(model, params, stats, gates, batches, targets)


def fedkl_accuracy_factor(n: int, batch: int = 64) -> float:
    """Computes what the official code multiplies every accuracy by.

    It divides by ``batch * ceil(n / batch)`` where n is right: 0.99522 for 10,000 test
    examples. For comparison with published numbers only: true = printed / factor.

    Raises:
      ValueError: for `n` or `batch` below 1.

    Reference: FedKL, utils/Client.py.
    """
    if n < 1 or batch < 1:
        raise ValueError(f"n and batch must be >= 1, got {n!r} and {batch!r}")
    return n / (batch * math.ceil(n / batch))


def in_batches(
    examples: Examples, name: str, batch: int, targets: TargetSpec | None = None
) -> tuple[PyTree, Array, Array]:
    """Cuts examples into batches [M, B, ...], and tells which are real."""
    if batch < 1:
        raise ValueError(f"batch must be >= 1, got {batch!r}")
    images, labels = checked(examples, name, targets)
    batch = min(batch, len(labels))
    missing = -len(labels) % batch

    def cut(values):
        filling = np.zeros((missing, *values.shape[1:]), values.dtype)
        return np.concatenate([values, filling]).reshape(-1, batch, *values.shape[1:])

    valid = np.ones(len(labels), bool)
    return map_columns(cut, images), cut(labels), cut(valid)


def checked(
    examples: Examples, name: str, targets: TargetSpec | None = None
) -> Examples:
    """Refuses examples that nothing can be measured on; labels get their dtype."""
    images, labels = map_columns(np.asarray, examples.inputs), np.asarray(examples[1])
    if targets is None or targets.kind == "classes":
        if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(
                f"{name}: labels must be integers [n], got {labels.dtype}{labels.shape}"
            )
        labels = labels.astype(np.int32)
    elif labels.shape[1:] != targets.stored:
        raise ValueError(
            f"{name}: targets have shape {labels.shape}; {targets.kind} are "
            f"[n, {', '.join(map(str, targets.stored))}]"
        )
    count = len(list_columns(images)[0])
    if count != len(labels):
        raise ValueError(f"{name}: {count} images, but {len(labels)} labels")
    if not len(labels):
        raise ValueError(f"{name}: no examples, at least one is needed")
    return Examples(images, labels)


def measure(
    model: Model,
    params: Params,
    stats: Stats,
    gates: Gates,
    batches: tuple[PyTree, Array, Array],
    targets: TargetSpec | None = None,
) -> float:
    """Measures a model on what `in_batches` gives; see `accuracy`."""
    _, labels, valid = batches
    given = model, params, stats, gates, *batches
    if targets is None:
        return float(_sum_right(_is_likeliest, *given)) / int(np.sum(valid))
    if targets.right is not None:
        return float(_sum_right(targets.right, *given)) / int(np.sum(valid))
    aims = np.asarray(targets.encode(labels), np.float64)[np.asarray(valid)]
    spread = np.sum((aims - aims.mean(axis=0)) ** 2)
    if not spread > 0:
        raise ValueError(
            f"the {len(aims)} targets that a model is measured on are all alike, and "
            "there is no R2 of them: take others, or more"
        )
    return 1 - float(_sum_squares(targets.encode, *given)) / float(spread)


def _is_likeliest(outputs: Array, labels: Array) -> Array:
    return jnp.argmax(outputs, axis=-1) == labels


@functools.partial(jax.jit, static_argnames=("right", "model"))
def _sum_right(right, model, params, stats, gates, images, labels, valid) -> Array:
    def count(batch):
        images, labels, valid = batch
        outputs = model.apply(params, stats, images, gates=gates, train=False).logits
        broken = jnp.any(jnp.isnan(outputs), axis=tuple(range(1, outputs.ndim)))
        return jnp.sum(jnp.where(valid & ~broken, right(outputs, labels), 0))

    return jnp.sum(jax.lax.map(count, (images, labels, valid)))


@functools.partial(jax.jit, static_argnames=("encode", "model"))
def _sum_squares(encode, model, params, stats, gates, images, labels, valid) -> Array:
    def add(batch):
        images, labels, valid = batch
        outputs = model.apply(params, stats, images, gates=gates, train=False).logits
        squares = (outputs - encode(labels)) ** 2
        return jnp.sum(jnp.where(valid, jnp.sum(squares.reshape(len(valid), -1), 1), 0))

    return jnp.sum(jax.lax.map(add, (images, labels, valid)))
