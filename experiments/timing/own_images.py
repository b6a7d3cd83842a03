"""Clients that have images of their own, and go through them in epochs."""

import numpy as np

from kljax import data


def noise(count, shape, classes, draws):
    """Draws a dataset of noise: the values of images cost nothing."""
    images = draws.random((count, *shape), np.float32)
    labels = draws.integers(0, classes, count)
    return data.Dataset("noise", images, labels, classes, None, "drawn here")


def epochs(work, draws):
    """Shuffles each client's own images for each epoch: indices [N, T, B]."""
    passes, rest = divmod(work.steps * work.batch, work.own)
    if rest or work.own % work.batch:
        raise ValueError(
            f"{work.steps} steps of {work.batch} are no whole passes through "
            f"{work.own} images in whole batches"
        )
    own = np.arange(work.clients * work.own).reshape(work.clients, 1, work.own)
    shuffled = draws.permuted(np.tile(own, (1, passes, 1)), axis=-1)
    return shuffled.reshape(work.clients, work.steps, work.batch)
