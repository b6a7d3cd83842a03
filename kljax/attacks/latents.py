"""Latents: images are looked for among those that a trained generator makes.

The search may go on behind the latents: among the features between the generator's
stages, or among its weights.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from kljax.attacks.attack import Unknown
from kljax.attacks.drivers import Stage
from kljax.attacks.setting import Setting
from kljax.attacks.starts import Start
from kljax.core.generator import Generator, decode_from
from kljax.core.types import Array, PyTree, Rng
from kljax.threat import View

# What a generator is told of the class: that of the network, or what is looked for.
CLASSES = ("told", "searched")


class Code(NamedTuple):
    """What is looked for of B images of a generator."""

    latents: Array  # [B, n]
    classes: Array | None  # [B, Kc] logits of the generator's; None where it is told


def searched_latents(
    setting: Setting,
    start: Start,
    *,
    bounded: bool = False,
    divergence: float = 0.0,
    classes: str = "told",
) -> Unknown:
    """Looks for the latents of the setting's generator, one for each example.

    The generator is told the labels: those that the label strategy settles on before
    the search. Where its classes are not the network's, or do not look like them, a
    mixture of its classes is looked for along with the latents, from equal shares.

    Args:
      setting: has the generator, and a label strategy that settles labels, unless
        classes are searched.
      start: draws the first latents [B, n].
      bounded: whether latents go through a tanh, and so stay in (-1, 1).
      divergence: weight of `normal_divergence`; 0 for none.
      classes: out of `CLASSES`.

    Returns:
      The unknown. A `Code` is free, and fixed are the targets [B, Kc] that the
      generator is told, or ().

    Raises:
      ValueError: for no generator, one without latents, one of other classes or colours
        than the images, and labels that are optimised.
    """
    if classes not in CLASSES:
        raise ValueError(f"classes must be one of {CLASSES}, got {classes!r}")
    told = classes == "told"
    generator, strategy = require_generator(setting), setting.threat.strategy
    if told and strategy.labels == "joint":
        raise ValueError(
            "a generator is told the labels before the search, and labels='joint' "
            "looks for them in it: take recovered or given, or classes='searched'"
        )
    _check_fits(setting, generator, told)
    count = setting.threat.knowledge.examples

    def begin(rng: Rng, view: View, *targets: Array) -> tuple[Code, PyTree]:
        del view
        rng_start, _ = jax.random.split(rng)  # of two, as pages were printed with
        latents = start(rng_start, (count, generator.latents))
        if told:
            return Code(latents, None), *targets
        return Code(latents, jnp.zeros((count, generator.num_classes))), ()

    def decode(free: Code, targets: PyTree) -> Array:
        latents = jnp.tanh(free.latents) if bounded else free.latents
        return _images(setting, 0, latents, _told(free, targets))

    penalty = None
    if not (isinstance(divergence, (int, float)) and divergence == 0):
        # May be traced.
        penalty = lambda free: divergence * normal_divergence(free.latents)  # noqa: E731
    return Unknown(begin, decode, penalty=penalty, told=told)


def latent_stage(setting: Setting, *, sphere: bool) -> Stage:
    """Looks for latents, as `searched_latents` starts them.

    Args:
      setting: has the generator.
      sphere: whether each latent keeps the norm that it starts with, as in GIFD's code
        (SphericalOptimizer).
    """

    def enter(free: Code, targets: PyTree) -> tuple[Code, PyTree]:
        return free, (targets, _lengths(free.latents))

    def decode(free: Code, fixed: PyTree) -> Array:
        return _images(setting, 0, free.latents, _told(free, fixed[0]))

    def project(free: Code, fixed: PyTree) -> Code:
        if not sphere:
            return free
        # A latent of zeros has no direction, and stays.
        longer = jnp.maximum(_lengths(free.latents), 1e-12)
        return free._replace(latents=free.latents * (fixed[1] / longer))

    return Stage(enter, decode, project)


def feature_stage(setting: Setting, number: int, radius: float | Array) -> Stage:
    """Looks for the features [B, ...] that go into a stage of the generator.

    They begin at what the generator's stage before makes of its own, as the search
    ended, and stay in an l1 ball around that.

    Args:
      setting: its generator has stages.
      number: of the generator's stage, 1 or more; into stage 0 go the latents.
      radius: of the ball, over the number of one example's features: how far they may
        be moved on average. ``inf`` for everywhere; it may be traced.

    Reference: GIFD (Fang et al., ICCV 2023), section 3.3.
    """
    generator = require_generator(setting)

    def enter(free: PyTree, fixed: PyTree) -> tuple[Array, PyTree]:
        # After the latents a class that was looked for stays what it is, too.
        features, targets = free, fixed[0]
        if isinstance(free, Code):
            features, targets = free.latents, _told(free, targets)
        first = generator.stages[number - 1](generator.weights, features, targets)
        return first, (targets, first)

    def decode(features: Array, fixed: PyTree) -> Array:
        return _images(setting, number, features, fixed[0])

    def project(features: Array, fixed: PyTree) -> Array:
        first = fixed[1]
        bound = radius * first[0].size
        near = jax.vmap(lambda apart: project_onto_l1_ball(apart, bound))
        return first + near(features - first)

    return Stage(enter, decode, project)


def weight_stage(setting: Setting) -> Stage:
    """Looks for the generator's own weights, those of each example apart.

    They begin at what the generator was trained to; the latents stay as they are.

    Reference: GIAS (Jeon et al., NeurIPS 2021), section 3.2.
    """
    generator = require_generator(setting)

    def enter(free: Code, fixed: PyTree) -> tuple[PyTree, PyTree]:
        count = free.latents.shape[0]
        weights = jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (count, *jnp.shape(leaf))),
            generator.weights,
        )
        return weights, (free.latents, _told(free, fixed[0]))

    def one(weights: PyTree, latents: Array, targets: Array) -> Array:
        return generator.decode(weights, latents[None], targets[None])[0]

    def decode(weights: PyTree, fixed: PyTree) -> Array:
        return resized(jax.vmap(one)(weights, *fixed), setting.task.image_shape)

    return Stage(enter, decode)


def _told(free: Code, targets: PyTree) -> Array:
    """Gives the classes [B, Kc] that the generator is told."""
    return targets if free.classes is None else jax.nn.softmax(free.classes)


def _images(setting: Setting, number: int, features: Array, targets: Array) -> Array:
    generator = require_generator(setting)
    given = generator.weights, features, targets
    images = (
        decode_from(generator, number, *given) if number else generator.decode(*given)
    )
    return resized(images, setting.task.image_shape)


def project_onto_l1_ball(x: Array, radius: float | Array) -> Array:
    """Finds what is nearest to x among all whose absolute entries sum to at most R.

    Args:
      x: of any shape.
      radius: R, 0 or more; it may be traced.

    Reference: Duchi et al., "Efficient Projections onto the l1-Ball" (ICML 2008),
    figure 1, as optax has it; of a radius of 0 that is NaN.
    """
    positive = radius > 0
    found = optax.projections.projection_l1_ball(x, jnp.where(positive, radius, 1.0))
    return jnp.where(positive, found, 0.0)


def _lengths(latents: Array) -> Array:
    return jnp.sqrt(jnp.sum(latents**2, axis=-1, keepdims=True))


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


def require_generator(setting: Setting) -> Generator:
    """Gives the attacker's generator.

    Raises:
      ValueError: for none.
    """
    generator = setting.attacker.generator
    if generator is None:
        raise ValueError(
            "this attack looks among the images of a trained generator: name one with "
            "the option generator"
        )
    return generator


def require_stages(setting: Setting, attack: str) -> int:
    """Counts the stages of the attacker's generator.

    Args:
      setting: has the generator.
      attack: what needs them, for errors.

    Raises:
      ValueError: for no generator, or one that does not say its stages.
    """
    stages = require_generator(setting).stages
    if not stages:
        raise ValueError(
            f"{attack} looks among the features between the stages of a generator, and "
            "this one does not say its own: give kljax.core.generator.Generator.stages"
        )
    return len(stages)


def _check_fits(setting: Setting, generator: Generator, told: bool) -> None:
    if generator.latents < 1:
        raise ValueError(
            f"the generator has {generator.latents} latents: there is nothing to look "
            "for among its images"
        )
    if told and generator.num_classes != setting.task.num_classes:
        raise ValueError(
            f"the generator makes images of {generator.num_classes} classes, and the "
            f"network tells {setting.task.num_classes} apart: take one of as many, or "
            "classes='searched'"
        )
    colours, wanted = generator.shape[-1], setting.task.image_shape[-1]
    if colours not in (1, wanted):
        raise ValueError(
            f"the generator makes images of {colours} channels, and the network takes "
            f"in {wanted}"
        )
