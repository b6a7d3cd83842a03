"""Latents: images are looked for among those that a trained generator makes."""

import jax
import jax.numpy as jnp

from kljax.attacks.attack import Unknown
from kljax.attacks.labels import LABELS
from kljax.attacks.setting import Setting
from kljax.attacks.starts import Start
from kljax.core.generator import Generator
from kljax.core.types import Array, Rng
from kljax.threat import View


def searched_latents(
    setting: Setting, start: Start, *, bounded: bool = False, divergence: float = 0.0
) -> Unknown:
    """Looks for the latents of the setting's generator, one for each example.

    The generator is told the labels: those that the label strategy settles on before
    the search.

    Args:
      setting: has the generator, and a label strategy that settles labels.
      start: draws the first latents [B, n].
      bounded: whether latents go through a tanh, and so stay in (-1, 1).
      divergence: weight of `normal_divergence`; 0 for none.

    Raises:
      ValueError: for no generator, one of other classes or colours than the images,
        and labels that are optimised.
    """
    generator, strategy = setting.attacker.generator, setting.threat.strategy
    if generator is None:
        raise ValueError(
            "this attack looks among the images of a trained generator: name one with "
            "the option generator"
        )
    if strategy.labels == "joint":
        raise ValueError(
            "a generator is told the labels before the search, and labels='joint' "
            "looks for them in it: take recovered or given"
        )
    _check_fits(setting, generator)
    labels = LABELS[strategy.labels](setting)
    shape = (setting.threat.knowledge.examples, generator.latents)

    def begin(rng: Rng, view: View) -> tuple[Array, Array]:
        rng_start, rng_labels = jax.random.split(rng)
        return start(rng_start, shape), labels.decode(*labels.start(rng_labels, view))

    def decode(free: Array, targets: Array) -> Array:
        inside = jnp.tanh(free) if bounded else free
        images = generator.decode(generator.weights, inside, targets)
        return resized(images, setting.task.image_shape)

    penalty = None
    if not (isinstance(divergence, (int, float)) and divergence == 0):
        # May be traced.
        penalty = lambda free: divergence * normal_divergence(free)  # noqa: E731
    return Unknown(begin, decode, penalty=penalty)


def normal_divergence(vectors: Array) -> Array:
    """Sums ``-(1 + log s^2 - m^2 - s^2) / 2`` over vectors [B, n].

    m and s are mean and deviation of a vector's entries: the divergence of N(m, s^2)
    from N(0, 1), of which a latent's entries are draws.

    Reference: GGL (Li et al. 2022), its code, ng_loss.
    """
    mean = jnp.mean(vectors, axis=-1)
    square = jnp.var(vectors, axis=-1)
    return -0.5 * jnp.sum(1 + jnp.log(square + 1e-10) - mean**2 - square)


def resized(images: Array, shape: tuple[int, int, int]) -> Array:
    """Brings images [B, h, w, c] to a shape, bilinear; grey is the same in C channels.

    Sides of another ratio are stretched, where `kljax.data` would cut.
    """
    height, width, channels = shape
    images = jnp.broadcast_to(images, (*images.shape[:-1], channels))
    scaled = (len(images), height, width, channels)
    return jax.image.resize(images, scaled, "linear", antialias=True)


def _check_fits(setting: Setting, generator: Generator) -> None:
    if generator.num_classes != setting.task.num_classes:
        raise ValueError(
            f"the generator makes images of {generator.num_classes} classes, and the "
            f"network tells {setting.task.num_classes} apart"
        )
    colours, wanted = generator.shape[-1], setting.task.image_shape[-1]
    if colours not in (1, wanted):
        raise ValueError(
            f"the generator makes images of {colours} channels, and the network takes "
            f"in {wanted}"
        )
