"""Generators: untrained networks whose weights are searched in place of an image.

Written as plain functions of weights, not as a Flax module: each victim and restart
has weights of its own, and they are the unknowns.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from kljax.attacks.attack import Unknown
from kljax.attacks.setting import Setting
from kljax.core.types import Array, PyTree, Rng
from kljax.models.convolution import CHANNELS_LAST, matmul_convolution
from kljax.threat import View

SMALLEST = 4  # side of the first map
CHANNELS = 32  # of the last map but one
EPSILON = 1e-5  # PyTorch's, of the batch norms


def generated_images(setting: Setting, inputs: int = 128) -> Unknown:
    """Looks for the weights of GRNN's image branch, fed with fixed noise N(0, 1).

    Args:
      setting: gives the number B of examples and the image's shape.
      inputs: numbers of noise per example.

    Raises:
      ValueError: for an image that is not square, or whose side is no power of two
        from 8 on.

    Reference: GRNN (Ren, Deng, Xie 2022), its code; FedKL takes 1024 inputs.
    """
    height, width, channels = setting.task.image_shape
    blocks = int(math.log2(height)) - 2 if height > 0 else 0
    if height != width or blocks < 1 or SMALLEST * 2**blocks != height:
        raise ValueError(
            f"a generator doubles a map of {SMALLEST}x{SMALLEST} to an image of 8, 16, "
            f"32, ... pixels a side; the setting's is {height} x {width}"
        )
    return _generated(
        setting,
        inputs,
        lambda rng: init_image_branch(rng, inputs, blocks, channels),
        image_branch,
    )


def generated_labels(setting: Setting, inputs: int = 128) -> Unknown:
    """Looks for the weights of GRNN's label branch: one dense layer and a softmax.

    GRNN feeds both branches the same noise. They share no weight, so noise of its own,
    as here, makes no difference.
    """
    return _generated(
        setting,
        inputs,
        lambda rng: init_label_branch(rng, inputs, setting.task.num_classes),
        label_branch,
    )._replace(read=lambda targets, fixed: setting.task.targets.decode(targets))


def _generated(
    setting: Setting,
    inputs: int,
    init: Callable[[Rng], PyTree],
    branch: Callable[[PyTree, Array], Array],
) -> Unknown:
    shape = (setting.threat.knowledge.examples, inputs)

    def start(rng: Rng, view: View):
        del view
        rng_weights, rng_noise = jax.random.split(rng)
        return init(rng_weights), jax.random.normal(rng_noise, shape)

    return Unknown(start, branch)


def image_branch(weights: PyTree, noise: Array) -> Array:
    """Maps noise [B, inputs] to images [B, S, S, C] in (0, 1).

    A transposed convolution onto a map of 4x4, then blocks of doubling, 3x3
    convolution and batch norm (in train mode); gated linear units after each. The last
    ends in a sigmoid.
    """
    first = weights["first"]
    # A transposed convolution of one pixel is a product.
    x = jnp.einsum("bi,ihwc->bhwc", noise, first["kernel"]) + _wide(first["bias"])
    x = gated_linear(x)
    for block in weights["blocks"]:
        x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        x = matmul_convolution(
            x,
            block["kernel"],
            (1, 1),
            ((1, 1), (1, 1)),
            dimension_numbers=CHANNELS_LAST,
        )
        mean = jnp.mean(x, (0, 1, 2), keepdims=True)
        variance = jnp.mean((x - mean) ** 2, (0, 1, 2), keepdims=True)
        x = (x - mean) * jax.lax.rsqrt(variance + EPSILON)
        x = gated_linear(x * _wide(block["scale"]) + _wide(block["bias"]))
    return jax.nn.sigmoid(x)


def label_branch(weights: PyTree, noise: Array) -> Array:
    """Maps noise [B, inputs] to soft labels [B, Kc]."""
    return jax.nn.softmax(noise @ weights["kernel"] + weights["bias"][None])


def gated_linear(x: Array) -> Array:
    """Multiplies the first half of the channels by the sigmoid of the second."""
    value, gate = jnp.split(x, 2, axis=-1)
    return value * jax.nn.sigmoid(gate)


def init_image_branch(rng: Rng, inputs: int, blocks: int, channels: int) -> PyTree:
    """Draws the weights of `image_branch` as PyTorch does by default.

    Args:
      rng: random key.
      inputs: numbers of noise per example.
      blocks: how often the map of 4x4 is doubled, at least once.
      channels: C of the images; before that the widths fall from ``32 2^(blocks-1)``
        to 32, halving.
    """
    widths = [CHANNELS * 2**i for i in reversed(range(blocks))] + [channels]
    rng, rng_first = jax.random.split(rng)
    # PyTorch counts the fan of a transposed convolution on its output side.
    first_shape = (inputs, SMALLEST, SMALLEST, 2 * widths[0])
    first = draw_dense(rng_first, first_shape, SMALLEST**2 * 2 * widths[0])
    drawn = []
    for before, after in zip(widths[:-1], widths[1:], strict=True):
        rng, rng_block = jax.random.split(rng)
        kernel = draw_dense(
            rng_block, (3, 3, before, 2 * after), 9 * before, bias=False
        )
        norm = {"scale": jnp.ones(2 * after), "bias": jnp.zeros(2 * after)}
        drawn.append(kernel | norm)
    return {"first": first, "blocks": drawn}


def init_label_branch(rng: Rng, inputs: int, num_classes: int) -> PyTree:
    """Draws the weights of `label_branch` as PyTorch does by default."""
    return draw_dense(rng, (inputs, num_classes), inputs)


def draw_dense(
    rng: Rng, shape: tuple[int, ...], fan: int, *, bias: bool = True
) -> dict[str, Array]:
    """Draws kernel and bias from U(-1/sqrt(fan), 1/sqrt(fan)), as PyTorch does."""
    limit = fan**-0.5
    rng_kernel, rng_bias = jax.random.split(rng)
    drawn = {
        "kernel": jax.random.uniform(rng_kernel, shape, jnp.float32, -limit, limit)
    }
    if bias:
        drawn["bias"] = jax.random.uniform(
            rng_bias, shape[-1:], jnp.float32, -limit, limit
        )
    return drawn


def _wide(values: Array) -> Array:
    return values[None, None, None]
