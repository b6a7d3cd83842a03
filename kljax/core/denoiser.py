"""Denoisers: what an attacker has who has learned how images differ from noise."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kljax.core.generator import Origin
from kljax.core.types import Array, PyTree

MOVES = 4  # along the flow, from the image that is given to a clean one


class Denoiser(NamedTuple):
    """A trained flow from noise to images.

    At time t in [0, 1] an image x of [0, 1] has become
    ``t (2 x - 1) + (1 - t) e``, e from N(0, I); at 0 it is nothing but noise.

    Attributes:
      velocity: ``(weights, states [B, h, w, c], times [B]) -> [B, h, w, c]``, the mean
        of ``(2 x - 1) - e`` given the states.
      weights: tree of arrays; they may be traced.
      shape: (h, w, c) of one image, c = 1 or 3. Other images are resized, and back.
      origin: what it was trained on; None where nobody says.
    """

    velocity: Callable[[PyTree, Array, Array], Array]
    weights: PyTree
    shape: tuple[int, int, int]
    origin: Origin | None = None


def mixed(images: Array, noise: Array, times: Array) -> Array:
    """Gives the states of images [B, h, w, c] at times [B]."""
    at = times[:, None, None, None]
    return at * (2 * images - 1) + (1 - at) * noise


def time_of(strength: Array) -> Array:
    """Gives the time at which an image has noise of a deviation, in units of [0, 1].

    The state over t is ``(2 x - 1) + (1 - t) / t e``, so noise of deviation s on x is
    that of t = 1 / (1 + 2 s).
    """
    return 1 / (1 + 2 * strength)


def move_to_clean(
    denoiser: Denoiser, images: Array, strength: Array, moves: int = MOVES
) -> Array:
    """Takes noise of a deviation off images, along the flow.

    One move gives the mean of all clean images that fit; more give one image that
    looks more like those of training, and is further from the truth in square.

    Args:
      denoiser: the flow.
      images: [B, h, w, c] of its shape.
      strength: [] deviation of the noise, in units of [0, 1]; 0 changes nothing.
      moves: Euler's, of the same length in time.

    Returns:
      Images in [0, 1].
    """
    start = time_of(strength)
    length = (1 - start) / moves

    def move(number, states):
        times = jnp.full(len(images), start + number * length)
        return states + length * denoiser.velocity(denoiser.weights, states, times)

    states = jax.lax.fori_loop(0, moves, move, start * (2 * images - 1))
    return jnp.clip((states + 1) / 2, 0, 1)


def check_denoiser(denoiser: Denoiser, name: str) -> None:
    """Refuses a denoiser whose flow is not of its shape or not finite.

    Args:
      denoiser: with weights that are not traced.
      name: of it, for errors.

    Raises:
      ValueError: for a flow of another shape, and for one that is not finite.
    """
    states = jax.random.normal(jax.random.key(0), (2, *denoiser.shape))
    times = jnp.array([0.0, 1.0])
    try:
        flow = jax.jit(denoiser.velocity)(denoiser.weights, states, times)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"denoiser {name!r} cannot move states {states.shape} at times "
            f"{times.shape}: {error}"
        ) from error
    if jnp.shape(flow) != states.shape:
        raise ValueError(
            f"denoiser {name!r} moves images of shape {denoiser.shape} by "
            f"{jnp.shape(flow)[1:]}"
        )
    if not np.all(np.isfinite(np.asarray(flow))):
        raise ValueError(f"denoiser {name!r}: its flow is not finite")
