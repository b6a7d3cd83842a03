"""Accuracy: the share of examples that a model with given gates gets right."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kljax.core.types import Array, Gates, Model, Params, Stats

# Examples per forward pass: a speed option. On a CPU 100 take half the time of 500
# (LeNet at 32x32): their patches stay in the cache.
BATCH = 100


class Examples(NamedTuple):
    """Labelled inputs."""

    inputs: Array  # [n, H, W, C] in [0, 1], of images
    labels: Array  # [n] integers in [0, Kc)


def accuracy(
    model: Model,
    params: Params,
    stats: Stats,
    gates: Gates,
    images: Array,
    labels: Array,
    *,
    batch: int = BATCH,
) -> float:
    """Computes the share of examples whose largest logit is that of the label.

    Norm layers use their running statistics. Examples are taken in batches of equal
    size; the last one is filled up, and what fills it is not counted.

    Args:
      model: the network; the same object again compiles nothing again.
      params, stats: its public weights and norm statistics.
      gates: of every site; the same sites again compile nothing again.
      images: [n, H, W, C] in [0, 1].
      labels: [n] integers in [0, Kc).
      batch: examples per forward pass; a speed option.

    Returns:
      The number of right answers divided by n. An answer with a NaN is wrong. Among
      equal logits the first class is the answer.

    Raises:
      ValueError: for no examples, unequal numbers of images and labels, labels that
        are not integers [n], or a batch below 1.

    Differs from FedKL, which divides by more than n: `fedkl_accuracy_factor`.
    """
    batches = in_batches(Examples(images, labels), "accuracy", batch)
    return int(count_right(model, params, stats, gates, *batches)) / len(labels)


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


def in_batches(examples: Examples, name: str, batch: int) -> tuple[Array, ...]:
    """Cuts examples into batches [M, B, ...], and tells which are real."""
    if batch < 1:
        raise ValueError(f"batch must be >= 1, got {batch!r}")
    images, labels = checked(examples, name)
    batch = min(batch, len(labels))
    missing = -len(labels) % batch

    def cut(values):
        filling = np.zeros((missing, *values.shape[1:]), values.dtype)
        return np.concatenate([values, filling]).reshape(-1, batch, *values.shape[1:])

    valid = np.ones(len(labels), bool)
    return cut(images), cut(labels.astype(np.int32)), cut(valid)


def checked(examples: Examples, name: str) -> Examples:
    images, labels = (np.asarray(values) for values in examples)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{name}: labels must be integers [n], got {labels.dtype}{labels.shape}"
        )
    if len(images) != len(labels):
        raise ValueError(f"{name}: {len(images)} images, but {len(labels)} labels")
    if not len(labels):
        raise ValueError(f"{name}: no examples, at least one is needed")
    return Examples(images, labels)


@functools.partial(jax.jit, static_argnames="model")
def count_right(model, params, stats, gates, images, labels, valid):
    def count(batch):
        images, labels, valid = batch
        logits = model.apply(params, stats, images, gates=gates, train=False).logits
        right = jnp.argmax(logits, axis=-1) == labels
        return jnp.sum(right & valid & ~jnp.any(jnp.isnan(logits), axis=-1))

    return jnp.sum(jax.lax.map(count, (images, labels, valid)))
