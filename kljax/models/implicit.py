"""The maps of a convolution on a GPU: implicit products, which write no patches.

Each of the three maps (`kljax.models.convolution_maps`, which explains the letters) is
one matrix product. Its left matrix repeats entries of an array, and is never written:
a kernel in Pallas gathers a tile of it where it multiplies.

    map              rows         inner        columns   left matrix
    convolve         (b, h, w)    (i, j, c)    f         pixel of images, or 0 outside
    image_gradient   (b, H, W)    (i, j, f)    c         pixel that (i, j) sees, or 0
    kernel_gradient  (i, j, c)    (b, h, w)    f         that of `convolve`, transposed

By a stride of s all but one in s * s entries of the second one's left matrix are 0, and
multiplied all the same.

Victims are an axis before the letters of both operands, and of the launched grid: each
has a product of its own, all in one launch.

On a GPU the kernel is lowered by Triton. Anywhere else it is interpreted, operation by
operation: that is for tests, and slow. It was never run on a GPU: which sizes of tiles
are fastest is a guess, and the form is nobody's default.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from kljax.core.types import Array
from kljax.models.convolution_maps import FOLDED, SHAPES, Geometry, make_maps


class Product(NamedTuple):
    """A map as a matrix product.

    Attributes:
      rows, inner, columns: its sides.
      left: (row, inner index) -> place in the left operand, and whether it is there.
      right: (inner index, column) -> place in the right operand.
      place: (row, column) -> place in the result.
    """

    rows: int
    inner: int
    columns: int
    left: Callable[[Array, Array], tuple[tuple[Array, ...], Array]]
    right: Callable[[Array, Array], tuple[Array, ...]]
    place: Callable[[Array, Array], tuple[Array, ...]]


def _unravel(index, shape):
    """Splits indices of a row-major array into those of its axes, no bounds checked."""
    found = []
    for size in reversed(shape[1:]):
        found.append(index % size)
        index = index // size
    return (index, *reversed(found))


def _seen(position, weight, geometry):
    """Finds the pixel of an image that a result's pixel sees, and whether it is one.

    Args:
      position: row and column of the result.
      weight: row and column of the kernel.
    """
    pixel = [
        stride * at + offset - before
        for at, offset, stride, (before, _) in zip(
            position, weight, geometry.strides, geometry.padding, strict=True
        )
    ]
    return pixel, _inside(pixel, geometry.image)


def _seeing(pixel, weight, geometry):
    """Finds the result's pixel that sees an image's by a weight, if there is one."""
    position, fits = [], True
    for at, offset, stride, (before, _) in zip(
        pixel, weight, geometry.strides, geometry.padding, strict=True
    ):
        from_start = at + before - offset
        position.append(from_start // stride)
        fits &= (from_start >= 0) & (from_start % stride == 0)
    return position, fits & _inside(position, geometry.result)


def _inside(place, sizes):
    inside = True
    for at, size in zip(place, sizes, strict=True):
        inside &= (at >= 0) & (at < size)
    return inside


def _patch(positions, weights, geometry, at, entry):
    """Finds the place in images of an entry of a patch, and whether it is inside.

    Args:
      positions, weights: axes (b, h, w) and (i, j, c) of the matrix of patches.
      at, entry: its row and column.
    """
    example, *position = _unravel(at, positions)
    *weight, channel = _unravel(entry, weights)
    pixel, inside = _seen(position, weight, geometry)
    return (example, *pixel, channel), inside


def _convolve_product(images, kernel, geometry):
    (count, *_), (*window, channels, features) = images[1:], kernel[1:]
    positions = (count, *geometry.result)
    weights = (*window, channels)

    return Product(
        math.prod(positions),
        math.prod(weights),
        features,
        functools.partial(_patch, positions, weights, geometry),
        lambda inner, column: (*_unravel(inner, weights), column),
        lambda row, column: (*_unravel(row, positions), column),
    )


def _image_gradient_product(grads, kernel, geometry):
    (count, *_), (*window, channels, features) = grads[1:], kernel[1:]
    pixels = (count, *geometry.image)
    weights = (*window, features)

    def left(row, inner):
        example, *pixel = _unravel(row, pixels)
        *weight, feature = _unravel(inner, weights)
        position, fits = _seeing(pixel, weight, geometry)
        return (example, *position, feature), fits

    def right(inner, column):
        *weight, feature = _unravel(inner, weights)
        return (*weight, column, feature)

    return Product(
        math.prod(pixels),
        math.prod(weights),
        channels,
        left,
        right,
        lambda row, column: (*_unravel(row, pixels), column),
    )


def _kernel_gradient_product(images, grads, geometry):
    weights = (*geometry.kernel, images[-1])
    positions = grads[1:-1]

    return Product(
        math.prod(weights),
        math.prod(positions),
        grads[-1],
        lambda row, inner: _patch(positions, weights, geometry, inner, row),
        lambda inner, column: (*_unravel(inner, positions), column),
        lambda row, column: (*_unravel(row, weights), column),
    )


# Of shapes with victims first.
PRODUCTS = {
    "convolve": _convolve_product,
    "image_gradient": _image_gradient_product,
    "kernel_gradient": _kernel_gradient_product,
}


def multiply(
    name: str, left: Array, right: Array, *, geometry: Geometry, interpret: bool
) -> Array:
    """Computes a map of victims by one kernel.

    Args:
      name: of the map, of `PRODUCTS`.
      left, right: operands, [V, ...] with the map's letters behind the victims.
      geometry: of the convolution.
      interpret: whether Pallas interprets the kernel, on any device.

    Returns:
      The result [V, ...], of the left operand's type. Sums are of 32 bits, or of 64 for
      operands that are.
    """
    # Pallas takes a quarter of a second to import, and few ask for it.
    from kljax.models.implicit_kernel import launch

    product = PRODUCTS[name](left.shape, right.shape, geometry)
    shape = SHAPES[name](left.shape, right.shape, geometry)
    how = {"precision": geometry.precision, "interpret": interpret}
    return launch(name, product, shape, left, right, **how)


def _join_victims(primitive, operands, axes, geometry):
    """Computes victims as more of those that are there, or as more examples."""
    name = primitive.name.removeprefix(PREFIX)
    if name in FOLDED and axes[1] is None:
        left, right = jnp.moveaxis(operands[0], axes[0], 1), operands[1]
        victims, more, count = left.shape[:3]
        left = left.reshape(victims, more * count, *left.shape[3:])
        out = primitive.bind(left, right, geometry=geometry)
        out = out.reshape(victims, more, count, *out.shape[2:])
        return jnp.moveaxis(out, 1, 0)
    (size,) = {
        x.shape[axis]
        for x, axis in zip(operands, axes, strict=True)
        if axis is not None
    }

    def join(x, axis):
        own = (
            jnp.broadcast_to(x, (size, *x.shape))
            if axis is None
            else jnp.moveaxis(x, axis, 0)
        )
        return own.reshape(-1, *own.shape[2:])

    out = primitive.bind(*map(join, operands, axes), geometry=geometry)
    return out.reshape(size, -1, *out.shape[1:])


PREFIX = "implicit_"
_of_victims = make_maps(
    {name: functools.partial(multiply, name, interpret=True) for name in PRODUCTS},
    _join_victims,
    PREFIX,
    {
        platform: {
            name: functools.partial(multiply, name, interpret=False)
            for name in PRODUCTS
        }
        for platform in ("cuda", "rocm")
    },
)


def convolve(images: Array, kernel: Array, geometry: Geometry) -> Array:
    """Convolves [B, H, W, C] with [kh, kw, C, F] to [B, h, w, F]."""
    return _of_victims.convolve(images[None], kernel[None], geometry)[0]
