"""Starts: where the search for an image begins."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from kljax.typing import Array, Rng

Start: TypeAlias = Callable[[Rng, tuple[int, ...]], Array]


def normal(mean: float, std: float) -> Start:
    """Draws every entry from N(mean, std^2); DLG draws images from N(0, 1)."""

    def start(rng: Rng, shape: tuple[int, ...]) -> Array:
        return mean + std * jax.random.normal(rng, shape)

    return start


def constant(value: float) -> Start:
    """Starts every entry at `value`."""

    def start(rng: Rng, shape: tuple[int, ...]) -> Array:
        del rng
        return jnp.full(shape, value)

    return start
