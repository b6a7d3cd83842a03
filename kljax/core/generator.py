"""Generators: what an attacker has who has learned what images look like."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kljax.core.types import Array, PyTree

SAMPLES = 64  # images that are made to see where a generator's lie
ALIKE = 1e-3  # apart are pixels by rounding at most, of products in TF32 too


class Origin(NamedTuple):
    """What a generator was trained on.

    Attributes:
      dataset: name of it.
      split: of the dataset; None where it has none.
      public: [n] bool, one for each example of the split: whether it was trained on,
        and can therefore be no victim.
    """

    dataset: str
    split: str | None
    public: np.ndarray


class Generator(NamedTuple):
    """A trained generator of images.

    Attributes:
      decode: ``(weights, latents [B, n], targets [B, Kc]) -> images [B, h, w, c]`` in
        [0, 1]. Latents are those of N(0, I).
      weights: tree of arrays; they may be traced.
      latents: n.
      shape: (h, w, c) of one image, c = 1 or 3. Where the network takes in other
        images, they are resized.
      num_classes: Kc.
      origin: what it was trained on; None where nobody says.
      stages: `decode` in pieces, ``(weights, features, targets [B, Kc]) -> the next
        features``, all with a leading axis [B]. The first are the latents, the last
        the images. () where nobody says.
    """

    decode: Callable[[PyTree, Array, Array], Array]
    weights: PyTree
    latents: int
    shape: tuple[int, int, int]
    num_classes: int
    origin: Origin | None = None
    stages: tuple[Callable[[PyTree, Array, Array], Array], ...] = ()


def decode_from(
    generator: Generator, stage: int, weights: PyTree, features: Array, targets: Array
) -> Array:
    """Makes images [B, h, w, c] of the features that go into a stage.

    Args:
      generator: with stages.
      stage: 0 for the first, whose features are latents; the number of stages for
        images, which come back as they are.
      weights: of the generator.
      features: [B, ...].
      targets: [B, Kc].
    """
    for step in generator.stages[stage:]:
        features = step(weights, features, targets)
    return features


def check_generator(generator: Generator, name: str) -> None:
    """Refuses a generator whose images are not what it says, by making some.

    Args:
      generator: with weights that are not traced.
      name: of it, for errors.

    Raises:
      ValueError: for images of another shape, for values outside [0, 1] or not
        finite, and for stages that are not `decode` in pieces.
    """
    rng = jax.random.key(0)
    latents = jax.random.normal(rng, (SAMPLES, generator.latents))
    labels = jnp.arange(SAMPLES) % generator.num_classes
    targets = jax.nn.one_hot(labels, generator.num_classes)
    images = _made(generator.decode, generator, name, latents, targets)
    wanted = (SAMPLES, *generator.shape)
    if jnp.shape(images) != wanted:
        raise ValueError(
            f"generator {name!r} makes images of shape {jnp.shape(images)[1:]}, and "
            f"says {generator.shape}"
        )
    # NumPy's: XLA's least of nothing but NaN is infinite on processors (jax 0.10.2).
    low, high = (float(bound(np.asarray(images))) for bound in (np.min, np.max))
    if not (low >= 0 and high <= 1):  # true of NaN as well
        raise ValueError(
            f"generator {name!r} makes images in [{low:.3g}, {high:.3g}]: images here "
            "lie in [0, 1], so map its range onto that"
        )
    if not generator.stages:
        return
    staged = _made(
        lambda *given: decode_from(generator, 0, *given),
        generator,
        name,
        latents,
        targets,
    )
    if jnp.shape(staged) != wanted:
        raise ValueError(
            f"generator {name!r}: its stages make images of shape "
            f"{jnp.shape(staged)[1:]}, and decode makes {generator.shape}"
        )
    apart = float(np.max(np.abs(np.asarray(staged) - np.asarray(images))))
    if not apart <= ALIKE:
        raise ValueError(
            f"generator {name!r}: what its {len(generator.stages)} stages make of "
            f"latents is up to {apart:.3g} apart from what decode makes: one after "
            "another they must be decode"
        )


def _made(
    decode: Callable[[PyTree, Array, Array], Array],
    generator: Generator,
    name: str,
    latents: Array,
    targets: Array,
) -> Array:
    try:
        return jax.jit(decode)(generator.weights, latents, targets)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"generator {name!r} cannot decode latents {latents.shape} and targets "
            f"{targets.shape}: {error}"
        ) from error
