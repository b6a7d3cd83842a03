"""From pixels as files hold them to images as kljax holds them."""

import numpy as np
from PIL import Image

# What has the value 1 in each type of pixel.
WHITE = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535}

CHANNELS = {  # (channels of the pixels, channels asked for) -> conversion
    (1, 1): lambda image: image,
    (3, 3): lambda image: image,
    (1, 3): lambda image: np.repeat(image, 3, axis=-1),
    # Luma of ITU-R BT.601, what Pillow's convert("L") computes.
    (3, 1): lambda image: image @ np.float32([[0.299], [0.587], [0.114]]),
}


def resize(pixels: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Brings one picture to a shape: bilinear, with antialiasing when shrinking.

    A picture of another aspect ratio loses its two longer ends equally, rather than
    being squeezed. A picture that has the shape already keeps its exact values.

    Args:
      pixels: [h, w] or [h, w, c], c = 1 or 3; unsigned integers, or floating point in
        [0, 1].
      shape: (H, W, C) of the result, C = 1 or 3.

    Returns:
      [H, W, C] float32 in [0, 1].

    Raises:
      ValueError: another number of channels, another type, or floating point values
        outside [0, 1].
    """
    height, width, channels = check_shape(shape)
    image = _unit(pixels)
    convert = CHANNELS.get((image.shape[-1], channels))
    if convert is None:
        raise ValueError(
            f"cannot turn {image.shape[-1]} channels into {channels}; "
            "pictures have 1 or 3"
        )
    image = _scale(_crop(image, height, width), height, width)
    # Bilinear weights sum to 1 up to rounding, as luma weights do.
    return np.clip(convert(image), 0, 1).astype(np.float32, copy=False)


def check_shape(shape) -> tuple[int, int, int]:
    """Checks the shape (H, W, C) asked of a dataset, and returns it as a tuple."""
    sides = tuple(shape) if isinstance(shape, (tuple, list)) else ()
    whole = all(isinstance(side, (int, np.integer)) and side > 0 for side in sides)
    if len(sides) != 3 or not whole or sides[2] not in (1, 3):
        raise ValueError(
            f"shape is {shape!r}; give (H, W, C) with C = 1 or 3, such as (32, 32, 3)"
        )
    return tuple(int(side) for side in sides)


def _unit(pixels: np.ndarray) -> np.ndarray:
    pixels = np.asarray(pixels)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3:
        raise ValueError(f"a picture has shape {pixels.shape}; give [h, w, c]")
    if pixels.dtype in WHITE:
        return pixels.astype(np.float32) / np.float32(WHITE[pixels.dtype])
    if not np.issubdtype(pixels.dtype, np.floating):
        raise ValueError(
            f"a picture holds {pixels.dtype}; give uint8, uint16 or floating point"
        )
    if not (pixels.min() >= 0 and pixels.max() <= 1):  # true of NaN as well
        raise ValueError(
            f"a floating point picture spans [{pixels.min():g}, {pixels.max():g}]; "
            "values must lie in [0, 1]"
        )
    return pixels.astype(np.float32)


def _crop(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Cuts the largest centred window of the aspect ratio height : width."""
    tall, wide = image.shape[:2]
    if tall * width > wide * height:
        tall = max(1, round(wide * height / width))
    else:
        wide = max(1, round(tall * width / height))
    top, left = (image.shape[0] - tall) // 2, (image.shape[1] - wide) // 2
    return image[top : top + tall, left : left + wide]


def _scale(image: np.ndarray, height: int, width: int) -> np.ndarray:
    if image.shape[:2] == (height, width):
        return image
    # Channel by channel as 32-bit floats: Pillow would round colours to 8 bits.
    planes = [
        Image.fromarray(np.ascontiguousarray(image[..., channel])).resize(
            (width, height), Image.Resampling.BILINEAR
        )
        for channel in range(image.shape[-1])
    ]
    return np.stack([np.asarray(plane) for plane in planes], axis=-1)
