"""Triggers: what an attacker puts on an image, so that a network answers as it likes.

A trigger is a function ``images [..., H, W, C] -> images``, of the same shape and in
[0, 1]. Those of kljax lay a pattern p over an image through a mask m,
``x' = (1 - m) x + m p``, and can be asked for both.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np

from kljax.core.checks import shown, whole
from kljax.core.registry import check_callable, make_named
from kljax.core.types import Array

Trigger: TypeAlias = Callable[[Array], Array]

COLUMNS = 2  # of the bars of a distributed trigger


class Overlay(NamedTuple):
    """What is laid over an image."""

    mask: Array  # m [..., H, W, 1] in [0, 1]: how much of the image is covered
    pattern: Array  # p [..., H, W, C] in [0, 1]


def lay_over(images: Array, overlay: Overlay) -> Array:
    """Computes ``(1 - m) x + m p`` for images [..., H, W, C]."""

    def beside(x: Array) -> Array:
        ahead = (1,) * (images.ndim - x.ndim)
        return jnp.asarray(x, images.dtype).reshape(*ahead, *x.shape)

    mask, pattern = map(beside, overlay)
    return (1 - mask) * images + mask * pattern


@dataclasses.dataclass(frozen=True)
class OverlayTrigger:
    """A trigger that lays the same pattern over every image.

    Attributes:
      overlay: ``(H, W, C) -> Overlay`` of NumPy arrays [H, W, ...]. It raises a
        ValueError for images that the pattern does not fit on.
      parts: triggers that make up this one, of which each attacker puts on one; none
        of a trigger that is put on as a whole.
    """

    overlay: Callable[[tuple[int, int, int]], Overlay]
    parts: tuple["OverlayTrigger", ...] = ()

    def __call__(self, images: Array) -> Array:
        """Puts the whole trigger on images [..., H, W, C]."""
        return lay_over(images, self.overlay(images.shape[-3:]))


def patch(side: int = 4) -> OverlayTrigger:
    """Makes the trigger that paints a white square into the lower right corner.

    Args:
      side: of the square, in pixels.

    Raises:
      ValueError: for a side that is no whole number >= 1; and from the trigger, for
        images that are no larger.

    Reference: Gu et al., "BadNets: Identifying Vulnerabilities in the Machine Learning
    Model Supply Chain" (2017).
    """
    _check_pixels("patch", "side", side)

    def overlay(shape: tuple[int, int, int]) -> Overlay:
        height, width, _ = shape
        if side >= min(height, width):
            raise ValueError(
                f"a patch of {side} pixels covers images of {height} x {width}: take a "
                "smaller one"
            )
        mask = np.zeros((height, width, 1), np.float32)
        mask[-side:, -side:] = 1
        return Overlay(mask, np.ones(shape, np.float32))

    return OverlayTrigger(overlay)


def blended(alpha: float = 0.2, seed: int = 0) -> OverlayTrigger:
    """Makes the trigger that mixes every image with one picture of noise.

    Args:
      alpha: share of the noise in each pixel, in (0, 1].
      seed: of the noise, which is uniform in [0, 1] and independent over pixels.

    Raises:
      ValueError: for an alpha or a seed that is no such number.

    Reference: Chen et al., "Targeted Backdoor Attacks on Deep Learning Systems Using
    Data Poisoning" (2017), the blended injection strategy with a random pattern.
    """
    if not 0 < alpha <= 1:
        raise ValueError(f"blended has an alpha in (0, 1], got {shown(alpha)}")
    if not whole(seed) or seed < 0:
        raise ValueError(f"blended has a seed that is whole, >= 0, got {shown(seed)}")

    def overlay(shape: tuple[int, int, int]) -> Overlay:
        noise = np.random.default_rng(seed).random(shape, np.float32)
        return Overlay(np.full((*shape[:2], 1), alpha, np.float32), noise)

    return OverlayTrigger(overlay)


def distributed(parts: int = 4, length: int = 2, gap: int = 1) -> OverlayTrigger:
    """Makes the trigger of white bars of which every attacker puts on one.

    Bars are one pixel high and lie in two columns in the upper left corner; each is a
    part. Attackers are dealt the parts (`kljax.federated.roles`), and attack success
    is measured with all of them on an image.

    Args:
      parts: number of bars, from 2.
      length: of a bar, in pixels.
      gap: between two bars, in pixels.

    Raises:
      ValueError: for what is no such whole number; and from the trigger, for images
        that are no larger than all bars together.

    Reference: Xie et al., "DBA: Distributed Backdoor Attacks against Federated
    Learning" (ICLR 2020), its bars on MNIST, with sizes to be chosen.
    """
    if not whole(parts) or parts < 2:
        raise ValueError(f"distributed has 2 or more parts, got {shown(parts)}")
    _check_pixels("distributed", "length", length)
    _check_pixels("distributed", "gap", gap, 0)
    rows = -(-parts // COLUMNS)
    needed = (rows - 1) * (gap + 1) + 1, COLUMNS * length + gap

    def bars(shape: tuple[int, int, int], numbers: range) -> Overlay:
        if needed[0] >= shape[0] or needed[1] >= shape[1]:
            raise ValueError(
                f"{parts} bars of {length} pixels with gaps of {gap} take "
                f"{needed[0]} x {needed[1]} pixels, and images are {shape[0]} x "
                f"{shape[1]}: take fewer or smaller ones"
            )
        mask = np.zeros((*shape[:2], 1), np.float32)
        for number in numbers:
            row, column = divmod(number, COLUMNS)
            left = column * (length + gap)
            mask[row * (gap + 1), left : left + length] = 1
        return Overlay(mask, np.ones(shape, np.float32))

    def of(numbers: range) -> Callable[[tuple[int, int, int]], Overlay]:
        return lambda shape: bars(shape, numbers)

    alone = tuple(OverlayTrigger(of(range(n, n + 1))) for n in range(parts))
    return OverlayTrigger(of(range(parts)), alone)


def _check_pixels(trigger: str, name: str, value: int, least: int = 1) -> None:
    if not whole(value) or value < least:
        raise ValueError(
            f"{trigger} has a {name} of whole pixels >= {least}, got {shown(value)}"
        )


TRIGGERS: dict[str, Callable[..., Trigger]] = {
    "patch": patch,
    "blended": blended,
    "distributed": distributed,
}


def parts_of(trigger: Trigger) -> tuple[Trigger, ...]:
    """Lists the parts of a trigger, for one attacker each; none if it has none.

    Args:
      trigger: any; one of your own may have ``parts``, too.
    """
    return tuple(getattr(trigger, "parts", ()))


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
        [0, 1], or one of whose parts does.
    """
    trigger = make_named("trigger", text, TRIGGERS)
    check_callable("trigger", text, trigger)
    for one in (trigger, *parts_of(trigger)):
        _check_images(text, one, jnp.full((2, *image_shape), 0.5))
    return trigger


def _check_images(text: str, trigger: Trigger, images: Array) -> None:
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
