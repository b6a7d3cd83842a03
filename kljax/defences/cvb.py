"""CVB: a convolutional variational bottleneck, early in the network."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from kljax.core.types import Array, Path, PyTree, Rng
from kljax.defences.bottleneck import bottleneck_defence, check_size, sample, uniform
from kljax.defences.defence import Defence

WINDOW = 3  # of the encoder's convolutions
BOUND = 5.0  # what the deviation is made of is clipped to [-BOUND, BOUND]
DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def convolutional_bottleneck(
    layer: Path,
    shape: tuple[int, ...],
    *,
    size: float = 0,
    beta: float | Array = 1e-3,
    behind: Callable[[], tuple[Path, ...]] | None = None,
) -> Defence:
    """Feeds a convolution a decoded sample of what it was fed (CVB).

    Mean and deviation are made by a 3x3 convolution each, without a bias, ``z = mean +
    softplus(clip(raw, -5, 5)) noise``, and a 1x1 convolution without a bias decodes z.
    The loss gains the same term as that of `kljax.defences.dense_bottleneck`.

    Its authors' answer to the attack that leaves noisy gradients out (strategy
    ``omit``): early in the network, there are hardly others. Without biases, and with
    windows that overlap, no closed form reads the noise off.

    Args:
      layer: whose input is replaced.
      shape: [H, W, C] of its input, of one example.
      size: channels of the sample; 0 for half of C, or 8 where C is below 8.
      beta: weight of the divergence.
      behind: see `bottleneck_defence`.

    Raises:
      ValueError: for an input that is no image, a size that is no whole number from 0,
        and a beta below 0.

    Reference: Scheliga, Mäder, Seeland, "Privacy Preserving Federated Learning with
    Convolutional Variational Bottlenecks" (arXiv 2309.04515), in the spirit of: kernel
    sizes, the clipping and the number of channels are those of a public PyTorch version
    by the same names, and not checked against the paper. That version's divergence
    takes the deviation for a logarithm; here it is PRECODE's.
    """
    if len(shape) != 3:
        raise ValueError(
            f"a convolutional bottleneck needs an input [H, W, C], and {layer!r} is "
            f"fed {tuple(shape)}: take 'precode', or a convolution"
        )
    channels = shape[-1]
    if size == 0:
        size = channels // 2 if channels >= 8 else 8
    size = check_size("size", size)

    def draw_weights(rng: Rng) -> PyTree:
        rngs, fan_in = jax.random.split(rng, 3), WINDOW**2 * channels
        window = (WINDOW, WINDOW, channels, size)
        return {
            "mean": {"kernel": uniform(rngs[0], window, fan_in)},
            "deviation": {"kernel": uniform(rngs[1], window, fan_in)},
            "decoder": {"kernel": uniform(rngs[2], (1, 1, size, channels), size)},
        }

    return bottleneck_defence(
        layer,
        (*shape[:2], size),
        draw_weights=draw_weights,
        pass_through=pass_convolved,
        beta=beta,
        strategies=("mean", "known", "random_noise", "regress_noise", "omit"),
        behind=behind,
    )


def pass_convolved(
    beta: Array, public: PyTree, noise: Array | None, value: Array
) -> tuple[Array, Array]:
    """Passes a value [B, H, W, C] through the bottleneck."""

    def convolved(x: Array, part: str) -> Array:
        return lax.conv_general_dilated(
            x, public[part]["kernel"], (1, 1), "SAME", dimension_numbers=DIMENSIONS
        )

    raw = jnp.clip(convolved(value, "deviation"), -BOUND, BOUND)
    latent, added = sample(convolved(value, "mean"), raw, noise, beta)
    return convolved(latent, "decoder"), added
