"""Operations on images [B, H, W, C] in [0, 1], C = 1 or 3: those of ATS policies.

Each is that of Pillow, of which the official code of ATS makes its transforms, on
values between 0 and 1 that are not rounded to 8 bits unless an operation is about bits
or histograms. Each has a derivative almost everywhere; where the true one is 0
throughout (`posterise`, `equalise`), it is that of the identity, so that who searches
through an operation is told something. Signs are [B], -1 or 1: what the official code
draws for each image and operation; other operations leave them unused.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from kljax.core.types import Array

# (images [B, H, W, C], signs [B], amount) -> images [B, H, W, C]
Operation = Callable[[Array, Array, float], Array]

LEVELS = 255  # of 8 bits, above 0
LUMA = (
    np.array([19595, 38470, 7471]).reshape(1, 1, 1, 3) / 2**16
)  # Pillow's, of red, green and blue
FILL = 128 / LEVELS  # what a rotation leaves free


def shear_y(images: Array, signs: Array, amount: float) -> Array:
    """Moves columns up or down, in proportion to where they are; black comes in.

    Linear between pixels, where the official code has cubic curves.
    """
    rows, columns = _centres(images)
    moved = rows[None] + (signs * amount)[:, None, None] * columns[None]
    return _linear(images, moved, jnp.broadcast_to(columns, moved.shape))


def translate_x(images: Array, signs: Array, amount: float) -> Array:
    """Moves images left or right by `amount` of their width; black comes in."""
    rows, columns = _centres(images)
    by = (signs * amount * images.shape[2])[:, None, None]
    columns = columns[None] + by
    return _nearest(images, jnp.broadcast_to(rows, columns.shape), columns, 0.0)


def translate_y(images: Array, signs: Array, amount: float) -> Array:
    """Moves images up or down by `amount` of their height; black comes in."""
    rows, columns = _centres(images)
    rows = rows[None] + (signs * amount * images.shape[1])[:, None, None]
    return _nearest(images, rows, jnp.broadcast_to(columns, rows.shape), 0.0)


def rotate(images: Array, signs: Array, amount: float) -> Array:
    """Rotates images counter-clockwise by `amount` degrees; grey comes in."""
    del signs
    rows, columns = _centres(images)
    height, width = images.shape[1:3]
    down, right = rows - height / 2, columns - width / 2
    angle = np.deg2rad(amount)
    cosine, sine = np.cos(angle), np.sin(angle)
    from_columns = cosine * right - sine * down + width / 2
    from_rows = sine * right + cosine * down + height / 2
    shape = images.shape[:3]
    return _nearest(
        images,
        jnp.broadcast_to(from_rows, shape),
        jnp.broadcast_to(from_columns, shape),
        FILL,
    )


def change_colour(images: Array, signs: Array, amount: float) -> Array:
    """Moves images away from, or towards, their grey versions."""
    return _blend(_grey(images), images, 1 + signs * amount)


def change_contrast(images: Array, signs: Array, amount: float) -> Array:
    """Moves images away from, or towards, their mean grey, a whole level."""
    mean = jnp.mean(_grey(images), axis=(1, 2, 3), keepdims=True)
    return _blend(_levels(mean) / LEVELS, images, 1 + signs * amount)


def change_brightness(images: Array, signs: Array, amount: float) -> Array:
    """Moves images away from, or towards, black."""
    return _blend(jnp.zeros_like(images), images, 1 + signs * amount)


def change_sharpness(images: Array, signs: Array, amount: float) -> Array:
    """Moves images away from, or towards, smoothed versions with the same frame."""
    height, width = images.shape[1:3]
    if min(height, width) < 3:
        return images
    inner = sum(
        (5 if (i, j) == (1, 1) else 1)
        * images[:, i : height - 2 + i, j : width - 2 + j]
        for i in range(3)
        for j in range(3)
    )
    smooth = jnp.asarray(images).at[:, 1:-1, 1:-1].set(inner / 13)
    return _blend(smooth, images, 1 + signs * amount)


def invert(images: Array, signs: Array, amount: float) -> Array:
    """Turns black to white."""
    del signs, amount
    return 1 - images


def solarise(images: Array, signs: Array, amount: float) -> Array:
    """Inverts pixels from level `amount` up."""
    del signs
    return jnp.where(images * LEVELS < amount, images, 1 - images)


def posterise(images: Array, signs: Array, amount: float) -> Array:
    """Keeps the first `amount` bits of 8."""
    del signs
    step = 2 ** (8 - round(amount))
    kept = jnp.floor(_levels(images) / step) * step
    return _as_if_identity(images, kept / LEVELS)


def stretch_contrast(images: Array, signs: Array, amount: float) -> Array:
    """Stretches each channel to [0, 1] (autocontrast)."""
    del signs, amount
    low, high = (
        reduce(images, axis=(1, 2), keepdims=True) for reduce in (jnp.min, jnp.max)
    )
    wide = high > low
    stretched = (images - low) / jnp.where(wide, high - low, 1.0)
    return jnp.where(wide, stretched, images)


def equalise(images: Array, signs: Array, amount: float) -> Array:
    """Makes the histogram of each channel even."""
    del signs, amount
    levels = _levels(jax.lax.stop_gradient(images)).astype(jnp.int32)
    batch, height, width, channels = images.shape
    flat = levels.reshape(batch, height * width, channels)
    # Of each level how many pixels are below it, and how many have the highest.
    counts = jnp.sum(jax.nn.one_hot(flat, LEVELS + 1, dtype=jnp.int32), axis=1)
    below = jnp.cumsum(counts, axis=-1) - counts  # [B, C, 256]
    highest = jnp.max(flat, axis=1)[..., None]  # [B, C, 1]
    last = jnp.take_along_axis(counts, highest, axis=-1)
    step = (height * width - last) // LEVELS
    several = jnp.sum(counts > 0, axis=-1, keepdims=True) > 1
    table = (step // 2 + below) // jnp.maximum(step, 1)
    table = jnp.where((step > 0) & several, table, jnp.arange(LEVELS + 1))
    table = jnp.minimum(table, LEVELS)
    found = jnp.take_along_axis(table, jnp.moveaxis(flat, 1, 2), axis=-1)
    found = jnp.moveaxis(found, 2, 1).reshape(images.shape)
    return _as_if_identity(images, found / LEVELS)


OPERATIONS: dict[str, Operation] = {
    "shear_y": shear_y,
    "translate_x": translate_x,
    "translate_y": translate_y,
    "rotate": rotate,
    "colour": change_colour,
    "contrast": change_contrast,
    "brightness": change_brightness,
    "sharpness": change_sharpness,
    "invert": invert,
    "solarise": solarise,
    "posterise": posterise,
    "autocontrast": stretch_contrast,
    "equalise": equalise,
}


def _levels(images: Array) -> Array:
    """Rounds to levels 0 to 255."""
    return jnp.clip(jnp.floor(images * LEVELS + 0.5), 0, LEVELS)


def _as_if_identity(images: Array, changed: Array) -> Array:
    changed = changed.astype(images.dtype)
    return images + jax.lax.stop_gradient(changed - images)


def _grey(images: Array) -> Array:
    if images.shape[-1] != 3:
        return images
    return jnp.sum(images * LUMA.astype(images.dtype), axis=-1, keepdims=True)


def _blend(one: Array, other: Array, share: Array) -> Array:
    """Gives ``one + share (other - one)`` in [0, 1], of shares [B]."""
    share = share[:, None, None, None]
    return jnp.clip(one + share * (other - one), 0.0, 1.0).astype(other.dtype)


def _centres(images: Array) -> tuple[Array, Array]:
    """Gives rows and columns [H, W] of the centres of pixels."""
    height, width = images.shape[1:3]
    return jnp.meshgrid(
        jnp.arange(height) + 0.5, jnp.arange(width) + 0.5, indexing="ij"
    )


def _inside(images: Array, rows: Array, columns: Array) -> Array:
    height, width = images.shape[1:3]
    there = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    return there[..., None]


def _take(images: Array, rows: Array, columns: Array) -> Array:
    """Takes pixels at whole places [B, H, W], of outside the nearest."""
    batch, height, width, channels = images.shape
    rows = jnp.clip(rows, 0, height - 1)
    columns = jnp.clip(columns, 0, width - 1)
    places = (rows * width + columns).reshape(batch, -1, 1)
    flat = images.reshape(batch, height * width, channels)
    return jnp.take_along_axis(flat, places, axis=1).reshape(images.shape)


def _nearest(images: Array, rows: Array, columns: Array, fill: float) -> Array:
    whole = [jnp.floor(places).astype(jnp.int32) for places in (rows, columns)]
    there = _inside(images, rows, columns)
    return jnp.where(there, _take(images, *whole), fill).astype(images.dtype)


def _linear(images: Array, rows: Array, columns: Array) -> Array:
    up, left = jnp.floor(rows - 0.5), jnp.floor(columns - 0.5)
    down, right = (rows - 0.5 - up)[..., None], (columns - 0.5 - left)[..., None]
    up, left = up.astype(jnp.int32), left.astype(jnp.int32)

    def row_at(row: Array) -> Array:
        one, other = _take(images, row, left), _take(images, row, left + 1)
        return (1 - right) * one + right * other

    found = (1 - down) * row_at(up) + down * row_at(up + 1)
    return jnp.where(_inside(images, rows, columns), found, 0.0).astype(images.dtype)
