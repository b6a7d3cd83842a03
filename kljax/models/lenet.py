"""The LeNet of DLG and FedKL: three convolutions, one classifier."""

from collections.abc import Callable

import jax
from flax import nnx

from kljax.core.types import Array, Path
from kljax.models.calling import check_shape
from kljax.models.chain import SIGMOID, Layer, convolution, dense
from kljax.models.initialisers import Initialiser, torch_uniform
from kljax.models.norm_layers import norms

NORM_PATHS = ("norm1", "norm2", "norm3")

# With the activation that is the default.
CHAIN = (
    Layer("conv1", convolution(2, 2), SIGMOID, "norm1"),
    Layer("conv2", convolution(2, 2), SIGMOID, "norm2"),
    Layer("conv3", convolution(1, 2), SIGMOID, "norm3"),
    Layer("fc", dense),
)


class LeNet(nnx.Module):
    """Convolves 3->12, 12->12, 12->12 (kernel 5, padding 2, strides 2, 2, 1).

    Every arm of a study is this class: the norm that a key-lock brings along is the
    argument `lockable`, a layer without scale and shift between a convolution and its
    activation. At 32x32 the classifier sees 768 features.

    Reference: FedKL, backbone/LeNet.py and KL_layer_block.py; DLG, models/vision.py.
    Differs from FedKL: there the twin without lock has no norm at all, so that the
    lock's arm and its control were different networks.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        image_shape: tuple[int, int, int] = (32, 32, 3),
        norm: str = "batch",
        lockable: tuple[Path, ...] = (),
        activation: Callable[[Array], Array] = jax.nn.sigmoid,
        initialiser: Initialiser | None = None,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
          num_classes: Kc.
          image_shape: [H, W, C] of one image.
          norm: kind of the norms, ``batch`` or ``group``.
          lockable: which of ``norm1`` (the paper's), ``norm2``, ``norm3`` are there;
            none of them has a scale and shift.
          activation: after each convolution.
          initialiser: of all weights and biases; None for PyTorch's default,
            U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for both.
          rngs: random streams.

        Raises:
          ValueError: for an unknown norm or lockable path.
        """
        height, width, channels = image_shape
        self.image_shape = tuple(image_shape)
        self.activation = activation
        make_norm = norms(norm, lockable, NORM_PATHS, everywhere=False)

        def layer(kind, fan_in, *args, **kwargs):
            init = initialiser or torch_uniform(fan_in)
            return kind(*args, **kwargs, kernel_init=init, bias_init=init, rngs=rngs)

        def conv(features_in, stride):
            window = {"strides": (stride, stride), "padding": ((2, 2), (2, 2))}
            fan_in = 25 * features_in
            return layer(nnx.Conv, fan_in, features_in, 12, (5, 5), **window)

        self.conv1 = conv(channels, 2)
        self.conv2 = conv(12, 2)
        self.conv3 = conv(12, 1)
        self.norm1, self.norm2, self.norm3 = (make_norm(p, 12) for p in NORM_PATHS)
        features = -(-height // 4) * -(-width // 4) * 12
        self.fc = layer(nnx.Linear, features, features, num_classes)

    def __call__(self, images: Array) -> Array:
        """Maps images [B, H, W, C] to logits [B, Kc]."""
        check_shape(images, self.image_shape)
        x = images
        for conv, norm in (
            (self.conv1, self.norm1),
            (self.conv2, self.norm2),
            (self.conv3, self.norm3),
        ):
            x = conv(x)
            x = self.activation(x if norm is None else norm(x))
        return self.fc(x.reshape(x.shape[0], -1))
