"""Augmentation: random changes of a batch of images, on the device, step by step.

An augmentation is a function ``(rng, images [B, H, W, C]) -> images``; every image of
the batch draws for itself. It runs inside the scan over local steps.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from kljax.core.types import Array, Rng

Augmentation: TypeAlias = Callable[[Rng, Array], Array]


def crop_and_flip(padding: int = 4, flip: bool = True) -> Augmentation:
    """Shifts every image by up to `padding` pixels and mirrors it or not.

    The image is framed with `padding` pixels of zero, a window of the old size is cut
    out, uniform over all positions, and mirrored left to right with probability 1/2.

    Zero is black: images are in [0, 1] here, and torchvision's `RandomCrop`, which the
    paper's code uses, pads before it normalises, too. (So where a network normalises,
    the frame is not the mean colour.)

    Args:
      padding: width of the frame, 0 or more.
      flip: whether to mirror.

    Returns:
      augment: ``(rng, images) -> images``; `rng` is consumed.

    Raises:
      ValueError: a negative padding.
    """
    if padding < 0:
        raise ValueError(f"padding of crop_and_flip is {padding}; give 0 or more")

    def augment(rng: Rng, images: Array) -> Array:
        """Pads, crops and mirrors each image of a batch by draws of its own."""
        crop_rng, flip_rng = jax.random.split(rng)
        count, height, width, _ = images.shape
        shape = (2, count, 1)
        down, right = jax.random.randint(crop_rng, shape, 0, 2 * padding + 1)
        rows, columns = jnp.arange(height)[None], jnp.arange(width)[None]
        if flip:
            mirrored = jax.random.bernoulli(flip_rng, shape=(count, 1))
            columns = jnp.where(mirrored, columns[:, ::-1], columns)
        frame = ((0, 0), (padding, padding), (padding, padding), (0, 0))
        images = _take(jnp.pad(images, frame), rows + down, 1)
        return _take(images, columns + right, 2)

    return augment


def _take(images: Array, places: Array, axis: int) -> Array:
    """Takes the rows or columns at `places` [B, n] of each image [B, H, W, C].

    By indices of whole axes: on a CPU, in a rough measurement, about half the time or
    less of one-hot matrix products, of static shifts that each image takes or not, and
    of slices image by image (`lax.map` over `dynamic_slice`), also under a map over
    clients.
    """
    shape = [1] * images.ndim
    shape[0], shape[axis] = places.shape
    places = places.reshape(shape)
    return jnp.take_along_axis(images, places, axis=axis, mode="promise_in_bounds")


AUGMENTATIONS: dict[str, Augmentation | None] = {
    "none": None,
    "crop_flip": crop_and_flip(),
}
