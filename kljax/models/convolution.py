"""Forms of convolution, each a drop-in for `lax.conv`.

Why: an attack differentiates a gradient, and it does so for many victims at once,
each with weights of its own. Under `vmap` every weight gradient of `lax.conv` then
becomes a grouped convolution, which XLA runs many times slower than the batched
matrix product that it is.

`matmul` is slices and one product. Patches are gathered in two stages, columns first
and rows second, because kh + kw slices compile and run faster than kh * kw. What it
writes to memory is kh * kw times the image, at batch 32 more than a cache holds.

`bilinear` keeps a convolution and its two gradients apart, each in the form that XLA's
CPU library multiplies without patches (`kljax.models.bilinear`); victims with kernels
of their own come one after another.

`implicit` keeps them apart, too, and multiplies by a kernel in Pallas that gathers
patches where they are multiplied (`kljax.models.implicit`). It is for a GPU alone.

`winograd` is for wide 3x3 convolutions of large images: a quarter of the
multiplications (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks",
2015, F(4x4, 3x3)). It is as linear in images and kernels as the plain form, so
gradients of gradients have no more multiplications either.

Which form is fastest depends on backend and size, so the form is a *speed option*:
it never changes results beyond rounding (`tests/models/test_convolution.py`), and
`experiments/speed.py --only convolution fl-layouts layouts-ig-convnet64` measures the
candidates.
"""

import functools
import math
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from kljax.core.types import Array
from kljax.models import bilinear, implicit
from kljax.models.bilinear import windows
from kljax.models.convolution_maps import CHANNELS_LAST, Geometry

Convolution: TypeAlias = Callable[..., Array]

# Winograd's algorithm with the points 0, 1, -1, 2, -2 and infinity: a tile of 6 inputs
# and 3 weights are mapped to 6 numbers each, whose products are mapped to 4 outputs.
INPUTS = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
WEIGHTS = (
    np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]])
    / 24
)
OUTPUTS = np.array(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
)
# From here on fewer multiplications pay for the mapping of tiles.
WIDE, LARGE = 64, 1024


def drop_in(form: Callable[..., Array]) -> Convolution:
    """Gives a form of convolution the arguments of `lax.conv_general_dilated`.

    In the layout of `nnx.Conv`: images [B, H, W, C], kernel [kh, kw, C, F], result
    [B, h, w, F]. What forms do not cover (other ranks and layouts, groups, input
    dilation, negative padding, results without pixels) is passed on to
    `lax.conv_general_dilated`.

    Args:
      form: ``(images, kernel, strides, padding, dilation, options) -> result``, with
        padding as pairs of numbers, and `options` as `lax.dot_general` takes them by
        name.

    Returns:
      The convolution. It raises what `lax.conv_general_dilated` raises: TypeError or
      ValueError, such as for a kernel of another number of channels.
    """

    def convolution(
        images: Array,
        kernel: Array,
        window_strides,
        padding,
        lhs_dilation=None,
        rhs_dilation=None,
        dimension_numbers=None,
        feature_group_count: int = 1,
        batch_group_count: int = 1,
        precision=None,
        preferred_element_type=None,
        out_sharding=None,
    ) -> Array:
        general = functools.partial(
            lax.conv_general_dilated,
            window_strides=window_strides,
            padding=padding,
            lhs_dilation=lhs_dilation,
            rhs_dilation=rhs_dilation,
            dimension_numbers=dimension_numbers,
            feature_group_count=feature_group_count,
            batch_group_count=batch_group_count,
            precision=precision,
            preferred_element_type=preferred_element_type,
            out_sharding=out_sharding,
        )
        # Shapes alone, while tracing. Reshaping would hide that channels differ.
        shape = jax.eval_shape(general, images, kernel).shape
        covered = (
            images.ndim == 4
            and _channels_last(images, kernel, dimension_numbers)
            and feature_group_count == 1
            and batch_group_count == 1
            and all(d == 1 for d in lhs_dilation or ())
            and (
                isinstance(padding, str)
                or all(p >= 0 for pair in padding for p in pair)
            )
            and math.prod(shape)
        )
        if not covered:
            return general(images, kernel)
        dilation = rhs_dilation or (1, 1)
        if isinstance(padding, str):
            padding = lax.padtype_to_pads(
                images.shape[1:3], extents(kernel, dilation), window_strides, padding
            )
        options = {
            "precision": precision,
            "preferred_element_type": preferred_element_type,
        }
        return form(images, kernel, window_strides, padding, dilation, options)

    convolution.__name__, convolution.__doc__ = form.__name__, form.__doc__
    return convolution


def extents(kernel: Array, dilation) -> tuple[int, int]:
    """Computes rows and columns of an image that one output sees."""
    sizes = zip(kernel.shape[:2], dilation, strict=True)
    height, width = ((size - 1) * d + 1 for size, d in sizes)
    return height, width


def patches_times_kernel(images, kernel, strides, padding, dilation, options) -> Array:
    """Convolves as slices, joined in two stages, and one product."""
    x = jnp.pad(images, ((0, 0), *padding, (0, 0)))
    height, width, channels, features = kernel.shape
    (sh, sw), (dh, dw) = strides, dilation
    tall, wide = extents(kernel, dilation)
    rows, columns = (x.shape[1] - tall) // sh + 1, (x.shape[2] - wide) // sw + 1
    x = jnp.concatenate(windows(x, 2, width, sw, dw, columns), axis=-1)
    x = jnp.concatenate(windows(x, 1, height, sh, dh, rows), axis=-1)
    # Both contracted over their last axis: the weight gradient is then a product that
    # XLA's CPU backend is 1.5 times faster at.
    return lax.dot_general(
        x.reshape(len(x) * rows * columns, height * width * channels),
        kernel.reshape(height * width * channels, features).T,
        (((1,), (1,)), ((), ())),
        **options,
    ).reshape(len(x), rows, columns, features)


def tiles_times_kernel(images, kernel, strides, padding, dilation, options) -> Array:
    """Convolves wide 3x3 kernels and large images by Winograd's F(4x4, 3x3).

    The rest (other kernels, strides or dilations, fewer than `WIDE` channels on either
    side, fewer than `LARGE` output pixels) is `patches_times_kernel`. Rounding errors
    are larger than there (`tests/models/test_convolution.py` has bounds).
    """
    *window, channels, features = kernel.shape
    x = jnp.pad(images, ((0, 0), *padding, (0, 0)))
    count, rows, columns = len(x), x.shape[1] - 2, x.shape[2] - 2
    chosen = (
        window == [3, 3]
        and all(n == 1 for n in (*strides, *dilation))
        and min(channels, features) >= WIDE
        and rows * columns >= LARGE
    )
    if not chosen:
        return patches_times_kernel(images, kernel, strides, padding, dilation, options)
    step, size = OUTPUTS.shape
    down, across = -(-rows // step), -(-columns // step)
    x = combined(INPUTS, windows(x, 2, size, step, 1, across), 0)
    x = combined(INPUTS, windows(x, 2, size, step, 1, down), 0)
    w = combined(WEIGHTS, list(kernel), 0)
    w = combined(WEIGHTS, [w[:, i] for i in range(3)], 1)
    # One product for each of the size * size numbers of a tile.
    y = lax.dot_general(
        x.reshape(size**2, count * down * across, channels),
        w.reshape(size**2, channels, features),
        (((2,), (1,)), ((0,), (0,))),
        **options,
    ).reshape(size, size, count, down, across, features)
    y = combined(OUTPUTS, list(y), 3)
    y = combined(OUTPUTS, list(y), 4)
    y = y.reshape(count, step * down, step * across, features)
    return y[:, :rows, :columns]


def maps_of_images_and_kernel(
    images, kernel, strides, padding, dilation, options
) -> Array:
    """Convolves by the bilinear maps of `kljax.models.bilinear`.

    Windows that do not overlap, or are larger than the image, dilated kernels, results
    larger than the image and results of another type are `patches_times_kernel`.
    """
    sides = zip(
        images.shape[1:3], kernel.shape[:2], strides, map(sum, padding), strict=True
    )
    chosen = all(
        stride < k <= size and (size + pads - k) // stride < size
        for size, k, stride, pads in sides
    )
    form = bilinear.convolve if chosen else None
    return _convolve_by(form, images, kernel, strides, padding, dilation, options)


def implicit_products(images, kernel, strides, padding, dilation, options) -> Array:
    """Convolves by the implicit products of `kljax.models.implicit`.

    Dilated kernels and results of another type are `patches_times_kernel`.
    """
    return _convolve_by(
        implicit.convolve, images, kernel, strides, padding, dilation, options
    )


def _convolve_by(form, images, kernel, strides, padding, dilation, options):
    """Convolves by `convolve` of some maps, and what they do not cover as a product."""
    element_type = options["preferred_element_type"]
    same = element_type is None or element_type == images.dtype
    if form is None or not same or any(d != 1 for d in dilation):
        return patches_times_kernel(images, kernel, strides, padding, dilation, options)
    geometry = Geometry(
        tuple(strides),
        tuple(map(tuple, padding)),
        images.shape[1:3],
        kernel.shape[:2],
        options["precision"] or jax.config.jax_default_matmul_precision,
    )
    return form(images, kernel, geometry)


def combined(matrix: np.ndarray, views: list[Array], axis: int) -> Array:
    """Stacks linear combinations of `views`, a row of `matrix` each, along `axis`."""
    rows = (
        [float(c) * view for c, view in zip(row, views, strict=True) if c]
        for row in matrix
    )
    return jnp.stack([sum(terms[1:], terms[0]) for terms in rows], axis)


def _channels_last(images: Array, kernel: Array, dimension_numbers) -> bool:
    shapes = images.shape, kernel.shape
    given = lax.conv_dimension_numbers(*shapes, dimension_numbers)
    return given == lax.conv_dimension_numbers(*shapes, CHANNELS_LAST)


def lax_convolution(*args, **kwargs) -> Array:
    """Convolves by XLA's own operator: `lax.conv_general_dilated`, unchanged."""
    return lax.conv_general_dilated(*args, **kwargs)


matmul_convolution = drop_in(patches_times_kernel)
winograd_convolution = drop_in(tiles_times_kernel)
bilinear_convolution = drop_in(maps_of_images_and_kernel)
implicit_convolution = drop_in(implicit_products)

CONVOLUTIONS: dict[str, Convolution] = {
    "matmul": matmul_convolution,
    "bilinear": bilinear_convolution,
    "winograd": winograd_convolution,
    "lax": lax_convolution,
    "implicit": implicit_convolution,
}
# Elsewhere its kernel would be interpreted, thousands of times slower.
ON_GPU_ALONE = ("implicit",)


def choose_form(backend: str) -> str:
    """Names the measured best form of convolution of a backend: cpu, gpu or tpu."""
    # On a CPU two layers at batch 32 were 3 to 9 times as fast by the bilinear maps as
    # by products of patches: processor time of one thread, not the clock, and not
    # beside peers. For rounds and attacks there are leads only: LeNet's rounds 1.5 to
    # 2.3 times, DLG 1.1 times, ResNet-20's inversion from 1.2 down to 0.8 times
    # (slower). On a GPU products are 8 times faster than XLA's own, and the maps were
    # not measured; on a TPU it is a guess (experiments/speed/). Winograd's form is
    # faster on the ConvNet and was slower on ResNet-18, for a reason not found, so it
    # has to be asked for.
    return "bilinear" if backend == "cpu" else "matmul"


def fastest_convolution(name: str = "auto") -> Convolution:
    """Chooses a convolution by name; ``auto`` is the measured best of this backend.

    Raises:
      ValueError: for a name that is neither ``auto`` nor in `CONVOLUTIONS`, and for a
        form of a GPU elsewhere.
    """
    backend = jax.default_backend()
    if name == "auto":
        name = choose_form(backend)
    if name in ON_GPU_ALONE and backend != "gpu":
        raise ValueError(
            f"the convolution {name!r} is a kernel for a GPU, and this backend is "
            f"{backend!r}: choose 'auto' or another form"
        )
    if name not in CONVOLUTIONS:
        raise ValueError(
            f"unknown convolution {name!r}: choose 'auto' or one of "
            f"{', '.join(map(repr, CONVOLUTIONS))}"
        )
    return CONVOLUTIONS[name]
