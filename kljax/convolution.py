"""Convolution as slices and one matrix product, a drop-in for `lax.conv`.

Why: an attack differentiates a gradient, and it does so for many victims at once,
each with weights of its own. Under `vmap` every weight gradient of `lax.conv` then
becomes a grouped convolution, which XLA runs many times slower than the batched
matrix product that it is. Patches are gathered in two stages, columns first and rows
second, because kh + kw slices compile and run faster than kh * kw.

Which form is fastest depends on backend and size, so the form is a *speed option*:
it never changes results beyond rounding (`tests/test_convolution.py`), and
`experiments/speed.py --only convolution` measures the candidates.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax.numpy as jnp
from jax import lax

from kljax.typing import Array

Convolution: TypeAlias = Callable[..., Array]


def windows(x: Array, axis: int, count: int, stride: int, dilation: int, length: int):
    """Lists `count` shifted views of `x`, each `length` long, along `axis`.

    View j holds the entries ``j * dilation + stride * i``. A stride is taken by
    splitting the axis into (position, phase): contiguous slices, and no interior
    padding in the derivative, which XLA's CPU backend is slow at.
    """
    reach = (count - 1) * dilation + stride * length
    x = lax.pad(
        x,
        jnp.zeros((), x.dtype),
        # Cut or filled up to whole strides; what is filled in is never read.
        [
            (0, -(-reach // stride) * stride - n if i == axis else 0, 0)
            for i, n in enumerate(x.shape)
        ],
    )
    x = x.reshape(*x.shape[:axis], -1, stride, *x.shape[axis + 1 :])
    views = []
    for offset in range(0, count * dilation, dilation):
        start, phase = divmod(offset, stride)
        view = lax.slice_in_dim(x, start, start + length, axis=axis)
        views.append(lax.index_in_dim(view, phase, axis + 1, keepdims=False))
    return views


def matmul_convolution(
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
    """Convolves as padded slices, concatenated in two stages, and one matmul.

    Takes the arguments of `lax.conv_general_dilated` in the layout of `nnx.Conv`:
    images [B, H, W, C], kernel [kh, kw, C, F], result [B, h, w, F]. What it does not
    cover (other ranks and layouts, groups, input dilation, negative padding) is passed
    on to `lax.conv_general_dilated`.
    """
    covered = (
        images.ndim == 4
        and _channels_last(images, kernel, dimension_numbers)
        and feature_group_count == 1
        and batch_group_count == 1
        and all(d == 1 for d in lhs_dilation or ())
        and (isinstance(padding, str) or all(p >= 0 for pair in padding for p in pair))
    )
    if not covered:
        return lax.conv_general_dilated(
            images,
            kernel,
            window_strides,
            padding,
            lhs_dilation,
            rhs_dilation,
            dimension_numbers,
            feature_group_count,
            batch_group_count,
            precision,
            preferred_element_type,
            out_sharding=out_sharding,
        )
    height, width, channels, features = kernel.shape
    (sh, sw), (dh, dw) = window_strides, rhs_dilation or (1, 1)
    extents = ((height - 1) * dh + 1, (width - 1) * dw + 1)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(
            images.shape[1:3], extents, window_strides, padding
        )
    x = jnp.pad(images, ((0, 0), *padding, (0, 0)))
    rows = (x.shape[1] - extents[0]) // sh + 1
    columns = (x.shape[2] - extents[1]) // sw + 1
    x = jnp.concatenate(windows(x, 2, width, sw, dw, columns), axis=-1)
    x = jnp.concatenate(windows(x, 1, height, sh, dh, rows), axis=-1)
    # Both contracted over their last axis: the weight gradient is then a product that
    # XLA's CPU backend is 1.5 times faster at.
    return lax.dot_general(
        x.reshape(-1, height * width * channels),
        kernel.reshape(-1, features).T,
        (((1,), (1,)), ((), ())),
        precision=precision,
        preferred_element_type=preferred_element_type,
    ).reshape(-1, rows, columns, features)


def _channels_last(images: Array, kernel: Array, dimension_numbers) -> bool:
    if dimension_numbers is None:
        return True
    shapes = images.shape, kernel.shape
    given = lax.conv_dimension_numbers(*shapes, dimension_numbers)
    return given == lax.conv_dimension_numbers(*shapes, ("NHWC", "HWIO", "NHWC"))


def lax_convolution(*args, **kwargs) -> Array:
    """Convolves by XLA's own operator: `lax.conv_general_dilated`, unchanged."""
    return lax.conv_general_dilated(*args, **kwargs)


CONVOLUTIONS: dict[str, Convolution] = {
    "matmul": matmul_convolution,
    "lax": lax_convolution,
}


def fastest_convolution(name: str = "auto") -> Convolution:
    """Chooses a convolution by name; ``auto`` is the measured best of this backend.

    Raises:
      ValueError: for a name that is neither ``auto`` nor in `CONVOLUTIONS`.
    """
    if name == "auto":
        # On LeNet's gradients 4 times faster than XLA's own on a CPU and 8 on a GPU, on
        # whole updates there 1.5 times (experiments/speed.md). Deeper networks were not
        # compared on a GPU; on a TPU it is a guess.
        name = "matmul"
    if name not in CONVOLUTIONS:
        raise ValueError(
            f"unknown convolution {name!r}: choose 'auto' or one of "
            f"{', '.join(map(repr, CONVOLUTIONS))}"
        )
    return CONVOLUTIONS[name]
