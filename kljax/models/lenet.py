"""The LeNet of DLG and FedKL: three convolutions, one classifier."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from kljax.typing import Array

Initialiser = Callable[..., Array]


def uniform(limit: float) -> Initialiser:
    """Draws from U(-limit, limit); 0.5 is the one of DLG and of FedKL's DLG test."""

    def init(rng, shape, dtype=jnp.float32, out_sharding=None):
        del out_sharding  # Flax passes it to every initialiser
        return jax.random.uniform(rng, shape, dtype, -limit, limit)

    return init


class LeNet(nnx.Module):
    """Convolves 3->12, 12->12, 12->12 (kernel 5, padding 2, strides 2, 2, 1).

    Every arm of a study is this class: the norm that a key-lock brings along is the
    argument `norm`, a layer without scale and shift at path ``norm1``, between the
    first convolution and its activation. At 32x32 the classifier sees 768 features.

    Reference: FedKL, backbone/LeNet.py and KL_layer_block.py; DLG, models/vision.py.
    Differs from FedKL: there the twin without lock has no norm at all, so that the
    lock's arm and its control were different networks.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        image_shape: tuple[int, int, int] = (32, 32, 3),
        norm: bool = False,
        activation: Callable[[Array], Array] = jax.nn.sigmoid,
        initialiser: Initialiser | None = None,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
          num_classes: Kc.
          image_shape: [H, W, C] of one image.
          norm: whether ``norm1``, a BatchNorm without scale and shift, is there.
          activation: after each convolution.
          initialiser: of all weights and biases; None for PyTorch's default,
            U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for both.
          rngs: random streams.
        """
        height, width, channels = image_shape
        self.activation = activation

        def layer(kind, fan_in, *args, **kwargs):
            init = initialiser or uniform(fan_in**-0.5)
            return kind(*args, **kwargs, kernel_init=init, bias_init=init, rngs=rngs)

        def conv(features_in, stride):
            window = {"strides": (stride, stride), "padding": ((2, 2), (2, 2))}
            fan_in = 25 * features_in
            return layer(nnx.Conv, fan_in, features_in, 12, (5, 5), **window)

        self.conv1 = conv(channels, 2)
        # Variance as the mean of squared deviations: E[x^2] - E[x]^2 cancels in
        # float32, and its second derivatives are what an attack uses.
        self.norm1 = (
            nnx.BatchNorm(
                12,
                momentum=0.9,
                epsilon=1e-5,
                use_scale=False,
                use_bias=False,
                use_fast_variance=False,
                rngs=rngs,
            )
            if norm
            else None
        )
        self.conv2 = conv(12, 2)
        self.conv3 = conv(12, 1)
        features = -(-height // 4) * -(-width // 4) * 12
        self.fc = layer(nnx.Linear, features, features, num_classes)

    def __call__(self, images: Array) -> Array:
        """Maps images [B, H, W, C] to logits [B, Kc]."""
        x = self.conv1(images)
        if self.norm1 is not None:
            x = self.norm1(x)
        x = self.activation(x)
        x = self.activation(self.conv2(x))
        x = self.activation(self.conv3(x))
        return self.fc(x.reshape(x.shape[0], -1))
