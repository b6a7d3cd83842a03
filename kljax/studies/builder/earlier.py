"""What a victim has sent before the upload that is attacked."""

import math

import numpy as np

from kljax import data
from kljax.core.memory import check_fits
from kljax.studies.builder import task
from kljax.studies.builder.generator import private_order
from kljax.studies.config import LeakConfig


def choose_before(config: LeakConfig, dataset: data.Dataset) -> tuple[np.ndarray, ...]:
    """Draws the examples of the victims' earlier uploads.

    They are none of the victims' examples: those are the first of the same order, and
    these the last, so that the first n of more victims have the past of n of fewer.

    Returns:
      Images [N, t, B, H, W, C] and labels [N, t, B]; () where t is 0.

    Raises:
      ValueError: for more examples than there are.
    """
    if not config.earlier:
        return ()
    shape = config.victims, config.earlier, config.examples
    count, attacked = int(np.prod(shape)), config.victims * config.examples
    order = private_order(config, dataset)
    if attacked + count > len(order):
        raise ValueError(
            f"earlier={config.earlier} uploads of {config.victims} victims take "
            f"{count} examples beside the {attacked} under attack, and dataset "
            f"{dataset.name!r} has {len(order)}: ask for fewer"
        )
    bytes_of = 4 * count * math.prod(dataset.shape)
    check_fits(bytes_of, f"{count} images", "earlier or victims")
    last = order[::-1][:count]
    images, labels = task.fetch_examples(dataset, last)
    return images.reshape(*shape, *images.shape[1:]), labels.reshape(shape)
