"""The network that R-GAP was shown on: six convolutions, no bias, no information lost.

LeakyReLU can be undone, and without biases every layer's output follows from its
weights alone.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
from flax import nnx

from kljax.core.types import Array
from kljax.models.calling import check_shape
from kljax.models.chain import Layer, convolution, dense, leaky_relu
from kljax.models.initialisers import Initialiser, torch_uniform

NEGATIVE_SLOPE = 0.2


class Window(NamedTuple):
    """One convolution."""

    channels: int
    size: int
    stride: int
    padding: int


WINDOWS = (
    Window(12, 4, 2, 2),
    Window(36, 3, 2, 1),
    Window(36, 3, 1, 1),
    Window(36, 3, 1, 1),
    Window(64, 3, 2, 1),
    Window(128, 3, 1, 1),
)


def chain(windows: Sequence[Window]) -> tuple[Layer, ...]:
    """Describes the network as a chain of layers."""
    activation = leaky_relu(NEGATIVE_SLOPE)
    return (
        *(
            Layer(f"layers/{i}", convolution(w.stride, w.padding), activation)
            for i, w in enumerate(windows)
        ),
        Layer("fc", dense),
    )


class CNN6(nnx.Module):
    """Convolves, each time followed by LeakyReLU, then classifies; no biases.

    At 32x32 the classifier sees 5 x 5 x 128 = 3,200 features.

    Reference: Zhu and Blaschko, "R-GAP" (ICLR 2021), code JunyiZhu-AI/R-GAP,
    models/CNN6.py. Differs: there it has one output for two classes, here one per
    class; with two classes their difference is that output.
    """

    def __init__(
        self,
        num_classes: int = 2,
        *,
        image_shape: tuple[int, int, int] = (32, 32, 3),
        windows: Sequence[Window] = WINDOWS,
        initialiser: Initialiser | None = None,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
          num_classes: Kc.
          image_shape: [H, W, C] of one image.
          windows: the convolutions ``layers/0``, ``layers/1``, ...
          initialiser: of all weights; None for PyTorch's default,
            U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
          rngs: random streams.
        """
        *sides, channels = image_shape
        layers = []
        for window in windows:
            fan_in = channels * window.size**2
            layers.append(
                nnx.Conv(
                    channels,
                    window.channels,
                    (window.size, window.size),
                    strides=(window.stride, window.stride),
                    padding=((window.padding, window.padding),) * 2,
                    use_bias=False,
                    kernel_init=initialiser or torch_uniform(fan_in),
                    rngs=rngs,
                )
            )
            sides = [
                (side + 2 * window.padding - window.size) // window.stride + 1
                for side in sides
            ]
            channels = window.channels
        features = sides[0] * sides[1] * channels
        self.image_shape = tuple(image_shape)
        self.layers = nnx.List(layers)
        self.fc = nnx.Linear(
            features,
            num_classes,
            use_bias=False,
            kernel_init=initialiser or torch_uniform(features),
            rngs=rngs,
        )
        self.activation = functools.partial(
            jax.nn.leaky_relu, negative_slope=NEGATIVE_SLOPE
        )

    def __call__(self, images: Array) -> Array:
        """Maps images [B, H, W, C] to logits [B, Kc]."""
        check_shape(images, self.image_shape)
        x = images
        for layer in self.layers:
            x = self.activation(layer(x))
        return self.fc(x.reshape(x.shape[0], -1))
