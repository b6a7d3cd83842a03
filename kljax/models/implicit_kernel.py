"""The kernel in Pallas that multiplies implicit products (`kljax.models.implicit`)."""

import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from kljax.core.types import Array

if TYPE_CHECKING:
    from kljax.models.implicit import Product

# Sides of a tile: Triton's products want 16 or more, and powers of two. Of rows and
# columns no more than these, of the inner side this.
LEAST, ROWS, COLUMNS, INNER = 16, 64, 64, 32
# Threads of a tile, in groups of 32, and loads ahead.
WARPS, STAGES = 4, 2


def launch(
    name: str,
    product: "Product",
    shape: tuple[int, ...],
    left: Array,
    right: Array,
    *,
    precision: jax.lax.PrecisionLike,
    interpret: bool,
) -> Array:
    """Multiplies, tile by tile, what a product gathers.

    Args:
      name: of the kernel, to be found in profiles.
      product: which entries of the operands are its left and right matrix.
      shape: [V, ...] of the result.
      left, right: operands, [V, ...].
      precision: of the multiplications.
      interpret: whether Pallas interprets the kernel, on any device.

    Returns:
      The result, of the left operand's type. Sums are of 32 bits, or of 64 for operands
      that are.
    """
    tile = _tile(product.rows, ROWS), _tile(product.columns, COLUMNS)
    grid = (len(left), *map(pl.cdiv, (product.rows, product.columns), tile))

    def of_victim(array_shape):
        whole = (0,) * (len(array_shape) - 1)
        return pl.BlockSpec((None, *array_shape[1:]), lambda v, *_: (v, *whole))

    return pl.pallas_call(
        functools.partial(_multiply_tile, product, tile, precision),
        grid=grid,
        in_specs=[of_victim(left.shape), of_victim(right.shape)],
        out_specs=of_victim(shape),
        out_shape=jax.ShapeDtypeStruct(shape, left.dtype),
        compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=STAGES),
        interpret=interpret,
        name=name,
    )(left, right)


def _tile(size, most):
    return min(most, max(LEAST, pl.next_power_of_2(size)))


def _multiply_tile(product, tile, precision, left_ref, right_ref, out_ref):
    rows, columns = (
        pl.program_id(axis + 1) * side + jnp.arange(side)
        for axis, side in enumerate(tile)
    )
    sums = jnp.promote_types(left_ref.dtype, jnp.float32)

    def load(ref, place, inside):
        # What is masked is not read, wherever its place.
        place, inside = _broadcast(place, inside)
        return triton.load(ref.at[place], mask=inside, other=0)

    def add(step, total):
        inner = step * INNER + jnp.arange(INNER)
        row, down = rows[:, None], inner[None]
        place, there = product.left(row, down)
        inside = there & (row < product.rows) & (down < product.inner)
        left = load(left_ref, place, inside)
        down, column = inner[:, None], columns[None]
        inside = (down < product.inner) & (column < product.columns)
        right = load(right_ref, product.right(down, column), inside)
        more = triton.dot(left, right, precision=precision)
        return total + more.astype(sums)

    total = jax.lax.fori_loop(
        0, pl.cdiv(product.inner, INNER), add, jnp.zeros(tile, sums)
    )
    row, column = rows[:, None], columns[None]
    inside = (row < product.rows) & (column < product.columns)
    place, inside = _broadcast(product.place(row, column), inside)
    triton.store(out_ref.at[place], total.astype(out_ref.dtype), mask=inside)


def _broadcast(place, inside):
    """Brings indices and their mask to one shape."""
    shape = jnp.broadcast_shapes(*(x.shape for x in place), inside.shape)
    return (
        tuple(jnp.broadcast_to(x, shape) for x in place),
        jnp.broadcast_to(inside, shape),
    )
