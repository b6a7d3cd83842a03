"""VGG-16: thirteen 3x3 convolutions in five stages, and dense layers.

Reference: Simonyan & Zisserman, "Very Deep Convolutional Networks for Large-Scale
Image Recognition" (2015), configuration D; torchvision's vgg.py (``vgg16`` has no
norms, ``vgg16_bn`` one after every convolution).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from kljax.core.types import Array, Path
from kljax.models.calling import check_shape
from kljax.models.initialisers import Initialiser, kaiming, normal
from kljax.models.norm_layers import Norms, norms
from kljax.models.pooling import max_pool

# (convolutions, channels) of each stage; a max-pool ends it
STAGES = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))
HIDDEN = (4096, 4096)  # torchvision's classifier, made for a map of 7x7
MAP = 7


class Layer(nnx.Module):
    """One 3x3 convolution with bias, its norm if it has one, and the activation."""

    def __init__(
        self,
        path: Path,
        channels_in: int,
        channels: int,
        *,
        norm: Norms,
        activation: Callable[[Array], Array],
        initialiser: Initialiser | None,
        rngs: nnx.Rngs,
    ):
        """Builds the layer that will be at `path`; see `VGG`."""
        self.activation = activation
        self.conv = nnx.Conv(
            channels_in,
            channels,
            (3, 3),
            padding=((1, 1), (1, 1)),
            kernel_init=initialiser or kaiming("fan_out"),
            bias_init=initialiser or nnx.initializers.zeros_init(),
            rngs=rngs,
        )
        self.norm = norm(f"{path}/norm", channels)

    def __call__(self, x: Array) -> Array:
        """Maps [B, H, W, channels_in] to [B, H, W, channels]."""
        x = self.conv(x)
        return self.activation(x if self.norm is None else self.norm(x))


class VGG(nnx.Module):
    """Stages of convolutions with a max-pool behind each; VGG-16 by default.

    Paths are ``layers/0/conv``, ``layers/0/norm``, ..., ``hidden/0``, ..., ``fc``;
    layers are numbered through all stages.

    Edge: BatchNorm over one example of a 1x1 map would give zeros; the smallest map
    that is normed has 2x2 pixels at 32x32.

    Differs from FedKL: there the lock's network has norms everywhere and no ReLU after
    the lock, and the twin without lock has no norm at all. Differs from torchvision:
    the last map is flattened as it is, not first pooled to 7x7, which at 224x224 it
    already is.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        image_shape: tuple[int, int, int] = (224, 224, 3),
        stages: tuple[tuple[int, int], ...] = STAGES,
        hidden: tuple[int, ...] | None = None,
        dropout: float = 0.5,
        norm: str | None = "batch",
        activation: Callable[[Array], Array] = jax.nn.relu,
        lockable: tuple[Path, ...] = (),
        initialiser: Initialiser | None = None,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
          num_classes: Kc.
          image_shape: [H, W, C] of one image, sides at least 2 ** stages.
          stages: (convolutions, channels) of each stage.
          hidden: sizes of the hidden dense layers. None for torchvision's 4096, 4096
            where the last map is 7x7 or more (from 224x224 on), and for none on
            smaller images, as is usual on CIFAR: there they would be 19 of 34
            million weights and learn from a map of 1x1.
          dropout: rate after each hidden dense layer; 0 for none.
          norm: ``batch`` or ``group`` after every convolution; None for torchvision's
            ``vgg16``, which has none, apart from a BatchNorm at `lockable` paths.
          activation: after each convolution and hidden dense layer.
          lockable: paths of norms without scale and shift.
          initialiser: of all weights and biases but the norms', which start as 1 and
            0. None for torchvision's: convolutions N(0, 2 / fan_out), dense layers
            N(0, 0.01^2), biases 0.
          rngs: random streams; with hidden layers, training draws dropout's masks.

        Raises:
          ValueError: for an unknown norm or lockable path, or too small an image.
        """
        height, width, before = image_shape
        shrunk = 2 ** len(stages)
        if min(height, width) < shrunk:
            raise ValueError(
                f"image_shape {image_shape} is too small: {len(stages)} stages halve "
                f"the sides, which must be at least {shrunk}"
            )
        everywhere = norm is not None
        make_norm = norms(
            norm if everywhere else "batch",
            lockable,
            norm_paths(stages),
            everywhere=everywhere,
        )
        channels = [width for count, width in stages for _ in range(count)]
        layers = []
        for i, after in enumerate(channels):
            layer = Layer(
                f"layers/{i}",
                before,
                after,
                norm=make_norm,
                activation=activation,
                initialiser=initialiser,
                rngs=rngs,
            )
            layers.append(layer)
            before = after

        def dense(features_in, features):
            return nnx.Linear(
                features_in,
                features,
                kernel_init=initialiser or normal(0.01),
                bias_init=initialiser or nnx.initializers.zeros_init(),
                rngs=rngs,
            )

        sides = (height // shrunk, width // shrunk)
        if hidden is None:
            hidden = HIDDEN if min(sides) >= MAP else ()
        sizes = (sides[0] * sides[1] * before, *hidden)
        self.counts = tuple(count for count, _ in stages)
        self.image_shape = tuple(image_shape)
        self.activation = activation
        self.layers = nnx.List(layers)
        self.hidden = nnx.List(
            [dense(*pair) for pair in zip(sizes[:-1], sizes[1:], strict=True)]
        )
        self.fc = dense(sizes[-1], num_classes)
        self.dropouts = nnx.List(
            [nnx.Dropout(dropout, rngs=rngs) for _ in hidden if dropout]
        )

    def __call__(self, images: Array) -> Array:
        """Maps images [B, H, W, C] to logits [B, Kc]."""
        check_shape(images, self.image_shape)
        x, done = images, 0
        for count in self.counts:
            for i in range(done, done + count):
                x = self.layers[i](x)
            done += count
            x = max_pool(x, (2, 2), strides=(2, 2))
        x = jnp.reshape(x, (x.shape[0], -1))
        for i, layer in enumerate(self.hidden):
            x = self.activation(layer(x))
            x = self.dropouts[i](x) if self.dropouts else x
        return self.fc(x)


def norm_paths(stages: tuple[tuple[int, int], ...]) -> tuple[Path, ...]:
    """Lists the norms of a `VGG` in forward order."""
    return tuple(f"layers/{i}/norm" for i in range(sum(count for count, _ in stages)))
