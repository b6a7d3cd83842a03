"""The ConvNet of Inverting Gradients: eight 3x3 convolutions, two max-pools.

Reference: Geiping et al., "Inverting Gradients" (NeurIPS 2020); its code,
inversefed/nn/models.py (``ConvNet64`` is this with width 64).
"""

from collections.abc import Callable

import jax
from flax import nnx

from kljax.core.types import Array, Path
from kljax.models.calling import check_shape
from kljax.models.initialisers import Initialiser, torch_uniform
from kljax.models.norm_layers import norms
from kljax.models.pooling import max_pool
from kljax.models.vgg import Layer

MULTIPLES = (1, 2, 2, 4, 4, 4, 4, 4)  # of the width: channels of each convolution
POOLED = (5, 7)  # a 3x3 max-pool with stride 3 follows these
NORM_PATHS = tuple(f"layers/{i}/norm" for i in range(len(MULTIPLES)))


class ConvNet(nnx.Module):
    """Convolution with bias, norm and ReLU, eight times; then one dense layer.

    Paths are ``layers/0/conv``, ``layers/0/norm``, ..., ``fc``. With width 64 it has
    2,904,970 parameters on CIFAR-10.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        image_shape: tuple[int, int, int] = (32, 32, 3),
        width: int = 64,
        norm: str = "batch",
        activation: Callable[[Array], Array] = jax.nn.relu,
        lockable: tuple[Path, ...] = (),
        initialiser: Initialiser | None = None,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
          num_classes: Kc.
          image_shape: [H, W, C] of one image, sides at least 9.
          width: channels of the first convolution; the last has four times as many.
          norm: ``batch`` or ``group``.
          activation: after each norm.
          lockable: paths of norms without scale and shift.
          initialiser: of all weights and biases but the norms', which start as 1 and
            0. None for PyTorch's default, U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
          rngs: random streams.

        Raises:
          ValueError: for an unknown norm or lockable path, or too small an image.
        """
        height, width_of_image, before = image_shape
        shrunk = 3 ** len(POOLED)
        if min(height, width_of_image) < shrunk:
            raise ValueError(
                f"image_shape {image_shape} is too small: two max-pools divide the "
                f"sides by {shrunk}"
            )
        make_norm = norms(norm, lockable, NORM_PATHS)
        layers = []
        for i, multiple in enumerate(MULTIPLES):
            layer = Layer(
                f"layers/{i}",
                before,
                multiple * width,
                norm=make_norm,
                activation=activation,
                initialiser=initialiser or torch_uniform(9 * before),
                rngs=rngs,
            )
            layers.append(layer)
            before = multiple * width
        features = (height // shrunk) * (width_of_image // shrunk) * before
        init = initialiser or torch_uniform(features)
        self.image_shape = tuple(image_shape)
        self.layers = nnx.List(layers)
        self.fc = nnx.Linear(
            features, num_classes, kernel_init=init, bias_init=init, rngs=rngs
        )

    def __call__(self, images: Array) -> Array:
        """Maps images [B, H, W, C] to logits [B, Kc]."""
        check_shape(images, self.image_shape)
        x = images
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i in POOLED:
                x = max_pool(x, (3, 3), strides=(3, 3))
        return self.fc(x.reshape(x.shape[0], -1))
