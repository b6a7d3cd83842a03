"""Pooling as `nnx.max_pool` and `nnx.avg_pool`, faster where windows lie side by side.

XLA's CPU backend takes windows one entry at a time, slowest in the gradient of a
maximum, which attacks differentiate once more. Such windows are a reshape, the
largest entry of each is chosen by a mask, and what is differentiated is the sum behind
the mask: reshapes, products and sums, however often.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jax import lax

from kljax.core.types import Array

Padding = str | Sequence[tuple[int, int]]


def max_pool(
    images: Array,
    window: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: Padding = "VALID",
) -> Array:
    """Takes the largest entry of each window; NaN where one of them is NaN.

    Where several are the largest, the first of them, row by row, has the gradient, as
    of `nnx.max_pool`. What is not [B, H, W, C], is padded or overlaps is left to it.

    Args:
      images: [B, H, W, C].
      window: rows and columns.
      strides: of rows and columns; one each if None.
      padding: as `nnx.max_pool` takes it.

    Returns:
      [B, h, w, C].
    """
    if not _side_by_side(images, window, strides, padding):
        return nnx.max_pool(images, window, strides, padding)
    return _largest(_largest(_tiles(images, window), 4), 2)


def avg_pool(
    images: Array,
    window: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: Padding = "VALID",
    count_include_pad: bool = True,
) -> Array:
    """Takes the mean of each window.

    What is not [B, H, W, C], is padded or overlaps is left to `nnx.avg_pool`.

    Args:
      images: [B, H, W, C].
      window: rows and columns.
      strides: of rows and columns; one each if None.
      padding: as `nnx.avg_pool` takes it.
      count_include_pad: whether zeros of the padding count.

    Returns:
      [B, h, w, C].
    """
    if not _side_by_side(images, window, strides, padding):
        return nnx.avg_pool(images, window, strides, padding, count_include_pad)
    return jnp.mean(_tiles(images, window), (2, 4))


def _side_by_side(images, window, strides, padding):
    """Says whether windows cover pixels once at most, and none is cut."""
    if images.ndim != 4 or len(window) != 2 or tuple(strides or ()) != tuple(window):
        return False
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(images.shape[1:3], window, strides, padding)
    fits = all(k <= size for k, size in zip(window, images.shape[1:3], strict=True))
    return fits and not any(n for pair in padding for n in pair)


def _tiles(images, window):
    """Gives each window axes of its own: [B, h, rows, w, columns, C]."""
    count, height, width, channels = images.shape
    (rows, columns), (h, w) = window, (height // window[0], width // window[1])
    images = images[:, : h * rows, : w * columns]
    return images.reshape(count, h, rows, w, columns, channels)


def _largest(values, axis):
    """Takes the first largest entry along an axis."""
    # Entry by entry: XLA's reductions over short axes are slow, too.
    best, place = lax.index_in_dim(values, 0, axis), 0
    for i in range(1, values.shape[axis]):
        value = lax.index_in_dim(values, i, axis)
        larger = (value > best) | (value != value)
        best, place = jnp.where(larger, value, best), jnp.where(larger, i, place)
    places = lax.broadcasted_iota(jnp.int32, values.shape, axis)
    return jnp.sum(jnp.where(places == place, values, 0), axis)
