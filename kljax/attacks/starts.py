"""Starts: where the search for an image begins."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from kljax.core.drawing import draw_jointly
from kljax.core.types import Array, Rng

Start: TypeAlias = Callable[[Rng, tuple[int, ...]], Array]


def normal(mean: float, std: float) -> Start:
    """Draws every entry from N(mean, std^2); DLG draws images from N(0, 1)."""

    def start(rng: Rng, shape: tuple[int, ...]) -> Array:
        return mean + std * _draw_normal(rng, shape)

    return start


def uniform(low: float, high: float) -> Start:
    """Draws every entry from U(low, high)."""

    def start(rng: Rng, shape: tuple[int, ...]) -> Array:
        draw = draw_jointly(lambda rng: jax.random.uniform(rng, shape))
        return low + (high - low) * draw(rng)

    return start


def _draw_normal(rng: Rng, shape: tuple[int, ...]) -> Array:
    """Draws N(0, 1): what `jax.random.normal` does, in a batch compiled faster."""
    return draw_jointly(lambda rng: jax.random.normal(rng, shape))(rng)


def around(image: ArrayLike, std: float = 0.0) -> Start:
    """Starts at a given image, the same for every example, plus N(0, std^2).

    Args:
      image: of the shape of one example, or one that broadcasts to it.
      std: of the noise, 0 or more.

    Raises:
      ValueError: for a negative std, and at the start for an image of another shape.
    """
    if not std >= 0:
        raise ValueError(f"std must be >= 0, got {std!r}")

    def start(rng: Rng, shape: tuple[int, ...]) -> Array:
        given = jnp.asarray(image, jnp.float32)
        # From the last axis on, as broadcasting goes.
        pairs = zip(reversed(given.shape), reversed(shape[1:]), strict=False)
        fits = given.ndim < len(shape) and all(n in (1, side) for n, side in pairs)
        if not fits:
            raise ValueError(
                f"the image to start around has shape {given.shape}, expected "
                f"{shape[1:]}"
            )
        begun = jnp.broadcast_to(given, shape)
        # Nothing is drawn in vain: that restarts start alike can then be seen.
        return begun + std * _draw_normal(rng, shape) if std else begun

    return start


def constant(value: float) -> Start:
    """Starts every entry at `value`."""

    def start(rng: Rng, shape: tuple[int, ...]) -> Array:
        del rng
        return jnp.full(shape, value)

    return start
