"""Attack success: how often a trigger makes a model answer what an attacker wants."""

import jax
import numpy as np

from kljax.core.types import Array, Gates, Model, Params, Stats
from kljax.data.triggers import Trigger
from kljax.federated.evaluation.correctness import (
    BATCH,
    Examples,
    accuracy,
    checked,
)


def attack_success(
    model: Model,
    params: Params,
    stats: Stats,
    gates: Gates,
    images: Array,
    labels: Array,
    *,
    trigger: Trigger,
    target: int,
    batch: int = BATCH,
) -> float:
    """Computes the share of triggered images that are taken for the target class.

    Images of the target class are left out: taking them for it is right. What a model
    without a backdoor says of the same triggered images is the floor, and not zero.

    Args:
      model, params, stats, gates, batch: see `accuracy`.
      images: [n, H, W, C] in [0, 1], without the trigger.
      labels: [n] integers in [0, Kc).
      trigger: put on every image.
      target: the attacker's class.

    Raises:
      ValueError: for images of the target class alone, and as `accuracy`.
    """
    triggered = triggered_examples(images, labels, trigger, target)
    return accuracy(model, params, stats, gates, *triggered, batch=batch)


def triggered_examples(
    images: Array, labels: Array, trigger: Trigger, target: int
) -> Examples:
    """Makes the examples of other classes with the trigger and the target label."""
    images, labels = checked(Examples(images, labels), "attack success")
    others = labels != target
    if not np.any(others):
        raise ValueError(
            f"attack success: all {len(labels)} images are of the target class "
            f"{target}: take more, or another target"
        )
    triggered = np.asarray(jax.jit(trigger)(images[others]))
    return Examples(triggered, np.full(len(triggered), target, np.int32))
