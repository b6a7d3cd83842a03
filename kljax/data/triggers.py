"""Triggers: what an attacker puts on an image, so that a network answers as it likes.

A trigger is a function ``images [..., H, W, C] -> images``, of the same shape and in
[0, 1].
"""

from collections.abc import Callable
from typing import TypeAlias

import jax.numpy as jnp
import numpy as np

from kljax.core.checks import shown, whole
from kljax.core.registry import check_callable, make_named
from kljax.core.types import Array

Trigger: TypeAlias = Callable[[Array], Array]


def patch(side: int = 4) -> Trigger:
    """Makes the trigger that paints a white square into the lower right corner.

    Args:
      side: of the square, in pixels.

    Raises:
      ValueError: for a side that is no whole number >= 1; and from the trigger, for
        images that are no larger.

    Reference: Gu et al., "BadNets: Identifying Vulnerabilities in the Machine Learning
    Model Supply Chain" (2017).
    """
    if not whole(side) or side < 1:
        raise ValueError(f"patch has a side of whole pixels >= 1, got {shown(side)}")

    def paint(images: Array) -> Array:
        height, width = images.shape[-3:-1]
        if side >= min(height, width):
            raise ValueError(
                f"a patch of {side} pixels covers images of {height} x {width}: take a "
                "smaller one"
            )
        corner = (jnp.arange(height) >= height - side)[:, None] & (
            jnp.arange(width) >= width - side
        )[None]
        corner = corner.reshape((1,) * (images.ndim - 3) + (height, width, 1))
        return jnp.where(corner, jnp.ones((), images.dtype), images)

    return paint


TRIGGERS: dict[str, Callable[..., Trigger]] = {"patch": patch}


def make_trigger(text: str, image_shape: tuple[int, ...]) -> Trigger:
    """Makes a trigger from its name and its numbers, such as ``patch=3``.

    Args:
      text: ``NAME[=OPTIONS]``, as in `kljax.core.registry.make_named`; a name of
        `TRIGGERS`, or ``package.module:function`` for a function of the numbers that
        gives a trigger.
      image_shape: [H, W, C] of the images that it will be put on.

    Raises:
      ValueError: for an unknown name, numbers that it does not take, images that are
        too small, and a trigger that of grey images makes none of that shape in
        [0, 1].
    """
    trigger = make_named("trigger", text, TRIGGERS)
    check_callable("trigger", text, trigger)
    images = jnp.full((2, *image_shape), 0.5)
    found = np.asarray(trigger(images))
    if found.shape != images.shape:
        raise ValueError(
            f"trigger {text!r} makes {found.shape} of images {images.shape}: it must "
            "keep their shape"
        )
    if not (found.min() >= 0 and found.max() <= 1):
        raise ValueError(
            f"trigger {text!r} makes values from {found.min():g} to {found.max():g}: "
            "images are in [0, 1]"
        )
    return trigger
