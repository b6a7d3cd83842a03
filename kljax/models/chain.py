"""A feed-forward network as a chain of layers, for attacks that walk it backwards.

A network whose layers simply follow each other may say so (`kljax.models.Network`).
Each layer is a map that is linear in its kernel and in its input, a bias, perhaps a
norm, and an activation that has an inverse. Skip connections, pooling and activations
that forget (ReLU below zero) have no place in a chain.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kljax.core.types import Array, Path
from kljax.models.convolution import CHANNELS_LAST


class Activation(NamedTuple):
    """An activation that can be undone.

    Attributes:
      function: what the network applies.
      inverse: ``value -> argument``; infinite or NaN outside the range.
      slope: ``value -> derivative``: of the value, not of the argument, since values
        are what an attacker comes upon.
      range: the lowest and the highest value.
      centre, spread: where values may be expected before anything is known.
    """

    function: Callable[[Array], Array]
    inverse: Callable[[Array], Array]
    slope: Callable[[Array], Array]
    range: tuple[float, float]
    centre: float
    spread: float


SIGMOID = Activation(
    function=jax.nn.sigmoid,
    inverse=lambda value: jnp.log(value) - jnp.log1p(-value),
    slope=lambda value: value * (1 - value),
    range=(0.0, 1.0),
    centre=0.5,
    spread=0.5,
)


def leaky_relu(negative_slope: float) -> Activation:
    """Makes ``x if x > 0 else negative_slope * x`` with its inverse.

    Raises:
      ValueError: unless the slope is positive; ReLU has no inverse.
    """
    if not negative_slope > 0:
        raise ValueError(
            f"negative_slope must be positive to have an inverse, got {negative_slope}"
        )
    return Activation(
        function=lambda x: jax.nn.leaky_relu(x, negative_slope),
        inverse=lambda value: jnp.where(value > 0, value, value / negative_slope),
        slope=lambda value: jnp.where(value > 0, 1.0, negative_slope),
        range=(-jnp.inf, jnp.inf),
        centre=0.0,
        spread=10.0,
    )


class Layer(NamedTuple):
    """One link: ``activation(norm(linear(kernel, x) + bias))``.

    Attributes:
      path: of the layer that has ``kernel`` and, perhaps, ``bias``.
      linear: ``(kernel [..., C, F], x) -> out``, for one example, linear in each. Every
        one of the C channels (last axis of x) is treated alike, and contributes its
        share to the sum: dense layers and convolutions without groups are so.
      activation: None after the classifier.
      norm: path of the norm that is put in here at a lock's site; None where there is
        no such site.
    """

    path: Path
    linear: Callable[[Array, Array], Array]
    activation: Activation | None = None
    norm: Path | None = None


def dense(kernel: Array, x: Array) -> Array:
    """Multiplies all of `x`, flattened, with a kernel [C, F]."""
    return x.reshape(kernel.shape[0]) @ kernel


def convolution(stride: int, padding: int) -> Callable[[Array, Array], Array]:
    """Makes the convolution of x [H, W, C] with a kernel [kh, kw, C, F]."""

    def linear(kernel: Array, x: Array) -> Array:
        return jax.lax.conv_general_dilated(
            x[None],
            kernel,
            (stride, stride),
            ((padding, padding), (padding, padding)),
            dimension_numbers=CHANNELS_LAST,
        )[0]

    return linear
