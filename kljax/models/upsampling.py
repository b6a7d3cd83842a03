"""A decoder of convolutions: a small map made of latents and label is enlarged twice.

Written as plain functions of weights, as each stage is one of its own: an attack may go
on from what lies between two of them. The map's side is that of the image, halved (and
rounded up) until it is at most `SMALLEST`; each stage doubles it by a convolution onto
four times the channels, which are then laid out as 2x2 pixels (Shi et al., "Real-Time
Single Image and Video Super-Resolution Using an Efficient Sub-Pixel Convolutional
Neural Network", CVPR 2016), and cuts off what is too much. Every stage is told the
label by a bias of its own.
"""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from kljax.core.types import Array, Params, Rng
from kljax.models.convolution import CHANNELS_LAST, bilinear_convolution

SMALLEST = 7  # largest side of the first map
KERNEL = 3


def map_sides(shape: tuple[int, int, int]) -> list[tuple[int, int]]:
    """Lists (height, width) of all maps, from the first one to the image's.

    They are 7, 14, 28 for images of 28 pixels, 7, 13, 25 for 25, and 4, 8 for 8.
    """
    sides = [tuple(shape[:2])]
    while max(sides[0]) > SMALLEST:
        height, width = sides[0]
        sides.insert(0, (-(-height // 2), -(-width // 2)))
    return sides


def convolve(images: Array, kernel: Array) -> Array:
    """Convolves images [B, H, W, C] by a kernel [3, 3, C, F], of the same size."""
    return bilinear_convolution(
        images, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=CHANNELS_LAST
    )


def laid_out(x: Array, shape: tuple[int, int]) -> Array:
    """Lays channels of [B, h, w, 4 C] out as pixels [B, 2 h, 2 w, C], cut to a shape.

    Channel ``(2 i + j) C + c`` becomes channel c of the pixel (i, j) of a block.
    """
    count, height, width, channels = x.shape
    x = x.reshape(count, height, width, 2, 2, channels // 4).swapaxes(2, 3)
    x = x.reshape(count, 2 * height, 2 * width, channels // 4)
    return x[:, : shape[0], : shape[1]]


def folded(x: Array) -> Array:
    """Undoes `laid_out` for even sides; others get a row or column of zeros first."""
    count, height, width, channels = x.shape
    x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
    height, width = x.shape[1] // 2, x.shape[2] // 2
    x = x.reshape(count, height, 2, width, 2, channels).swapaxes(2, 3)
    return x.reshape(count, height, width, 4 * channels)


def init_weights(
    rng: Rng,
    latents: int,
    num_classes: int,
    channels: tuple[int, ...],
    shape: tuple[int, int, int],
) -> Params:
    """Draws the weights of `make_stages`: N(0, 1/fan_in) for kernels, 0 for biases.

    Args:
      rng: random key.
      latents: n.
      num_classes: Kc.
      channels: of each map, from the first one; one for each of `map_sides`.
      shape: (h, w, c) of the images.
    """
    height, width = map_sides(shape)[0]
    wanted = {"first": (latents, height * width * channels[0])}
    pairs = [(n, 4 * m) for n, m in itertools.pairwise(channels)]
    for index, (before, after) in enumerate((*pairs, (channels[-1], shape[-1]))):
        wanted[f"maps/{index}"] = (KERNEL, KERNEL, before, after)
    weights = {}
    for index, (name, size) in enumerate(wanted.items()):
        fan = size[0] if len(size) == 2 else KERNEL**2 * size[2]
        drawn = jax.random.normal(jax.random.fold_in(rng, index), size)
        weights[f"{name}/kernel"] = drawn / fan**0.5
        weights[f"{name}/bias"] = jnp.zeros((num_classes, size[-1]))
    return weights


def make_stages(
    channels: tuple[int, ...], shape: tuple[int, int, int]
) -> tuple[Callable[[Params, Array, Array], Array], ...]:
    """Makes the stages: ``(weights, features, targets [B, Kc]) -> next features``.

    The first takes latents [B, n] and gives a map; every one but the last ends in a
    gelu; the last gives logits of pixels [B, h, w, c].
    """
    sides = map_sides(shape)
    final = f"maps/{len(channels) - 1}"

    def biased(weights: Params, name: str, targets: Array) -> Array:
        return targets @ weights[f"{name}/bias"]

    def first(weights: Params, latents: Array, targets: Array) -> Array:
        x = latents @ weights["first/kernel"] + biased(weights, "first", targets)
        return jax.nn.gelu(x.reshape(len(x), *sides[0], channels[0]))

    def enlarge(index: int):
        def stage(weights: Params, x: Array, targets: Array) -> Array:
            name = f"maps/{index}"
            x = convolve(x, weights[f"{name}/kernel"])
            x = x + biased(weights, name, targets)[:, None, None]
            return jax.nn.gelu(laid_out(x, sides[index + 1]))

        return stage

    def last(weights: Params, x: Array, targets: Array) -> Array:
        x = convolve(x, weights[f"{final}/kernel"])
        return x + biased(weights, final, targets)[:, None, None]

    return first, *(enlarge(index) for index in range(len(channels) - 1)), last


def decode_logits(
    channels: tuple[int, ...],
    shape: tuple[int, int, int],
    weights: Params,
    latents: Array,
    targets: Array,
) -> Array:
    """Sends latents [B, n] through all stages, to logits [B, h, w, c]."""
    x = latents
    for stage in make_stages(channels, shape):
        x = stage(weights, x, targets)
    return x
