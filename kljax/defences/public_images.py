"""Public images: what everybody has, for defences that need images of others."""

import functools

import numpy as np

from kljax import data

PUBLIC = 64  # images


@functools.cache
def load_public(who: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Loads `PUBLIC` images [P, H, W, C] of a data set, evenly over it, once.

    Args:
      who: needs them, for errors.
      name: of the data set (`kljax.data.load`).
      shape: of one image.

    Raises:
      ValueError: for a shape that is no image's, a data set that holds something else,
        or too few, and what loading it raises.
    """
    if len(shape) != 3:
        raise ValueError(f"{who} needs images [H, W, C], and an input is {shape}")
    dataset = data.load(name, shape=shape)
    if dataset.input_spec.kind != "image":
        raise ValueError(
            f"{who} needs images, and data set {name!r} holds {dataset.input_spec.kind}"
        )
    if len(dataset) < PUBLIC:
        raise ValueError(
            f"{who} needs {PUBLIC} images, and data set {name!r} has {len(dataset)}"
        )
    places = np.linspace(0, len(dataset) - 1, PUBLIC).astype(int)
    return dataset.fetch(places)[0]
