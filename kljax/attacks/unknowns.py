"""Unknown images: what is optimised, and how it becomes an image."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from kljax.attacks.attack import Setting, Unknown
from kljax.attacks.starts import Start
from kljax.core.types import Array, PyTree


def pixels(setting: Setting, start: Start) -> Unknown:
    """Looks for the pixels themselves, unbounded."""
    return decoded(setting, lambda images: images, setting.image_shape, start)


def boxed(unknown: Unknown) -> Unknown:
    """Keeps what is optimised in [0, 1], where images are, after every move."""

    def project(free: PyTree) -> PyTree:
        inside = unknown.project(free)
        return jax.tree.map(lambda x: jnp.clip(x, 0.0, 1.0), inside)

    return unknown._replace(project=project)


def decoded(
    setting: Setting,
    decoder: Callable[[PyTree], Array],
    shape: tuple[int, ...],
    start: Start,
) -> Unknown:
    """Looks for latents which `decoder` turns into images.

    Args:
      setting: gives the number B of examples.
      decoder: latents [B, *shape] -> images [B, H, W, C].
      shape: shape of one example's latent.
      start: draws the first latents.
    """
    full = (setting.threat.knowledge.examples, *shape)
    return Unknown(
        start=lambda rng, view: (start(rng, full), ()),
        decode=lambda free, fixed: decoder(free),
    )


def upsampled(setting: Setting, factor: int, start: Start) -> Unknown:
    """Looks for a coarse image, enlarged `factor` times by linear interpolation.

    Fewer unknowns than pixels, for gradients that say little about detail.

    Raises:
      ValueError: if `factor` is below 1 or does not divide the image's sides.
    """
    height, width, channels = setting.image_shape
    if factor < 1 or height % factor or width % factor:
        raise ValueError(
            f"factor={factor} does not divide the image's sides {height} x {width}"
        )
    coarse = (height // factor, width // factor, channels)

    def decoder(latents: Array) -> Array:
        shape = (latents.shape[0], height, width, channels)
        return jax.image.resize(latents, shape, "linear")

    return decoded(setting, decoder, coarse, start)
