"""Crops of the colour photographs that scikit-learn and scikit-image carry.

Ten photographs lie in the two wheels, so nothing is downloaded: files are opened where
the packages are installed, past their loaders. Each is cut into a grid of squares a
seventh of its shorter side wide: 42 to 201 pixels, always shrunk to reach 32 x 32. The
squares touch and never overlap, and the grid is centred, so that what does not fill a
square is lost equally at opposite ends. Squares without structure (sky, backdrop) are
dropped.

The label is the number of the photograph. That is no class a network could learn to
recognise elsewhere, so the dataset is for untrained networks, and crops of one
photograph resemble each other, so a bootstrap draws whole photographs (`groups`).
"""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from kljax.data.dataset import Dataset
from kljax.data.resizing import check_shape, resize

SQUARES_PER_SIDE = 7
MIN_DEVIATION = 0.08
REFERENCE_SHAPE = (32, 32, 3)


class Photograph(NamedTuple):
    """Where a photograph lies, and what its package says of its licence."""

    name: str
    package: str
    path: str  # inside the package
    licence: str


# The order is part of the data: labels and indices follow it.
PHOTOGRAPHS = (
    Photograph(
        "china",
        "sklearn",
        "datasets/images/china.jpg",
        "CC BY 2.0, danielbuechele, "
        "https://www.flickr.com/photos/danielbuechele/6061409035/",
    ),
    Photograph(
        "flower",
        "sklearn",
        "datasets/images/flower.jpg",
        "CC BY 2.0, https://www.flickr.com/photos/vultilion/6056698931/ (the README "
        "beside it names danielbuechele and links to the account vultilion)",
    ),
    Photograph(
        "astronaut",
        "skimage",
        "data/astronaut.png",
        "public domain, no known copyright restrictions, NASA Great Images, "
        "https://flic.kr/p/r9qvLn",
    ),
    Photograph("chelsea", "skimage", "data/chelsea.png", "CC0, Stefan van der Walt"),
    Photograph(
        "coffee",
        "skimage",
        "data/coffee.png",
        "CC0, Rachel Michetti, courtesy of Pikolo Espresso Bar",
    ),
    Photograph(
        "hubble_deep_field",
        "skimage",
        "data/hubble_deep_field.jpg",
        "public domain, NASA, "
        "http://hubblesite.org/newscenter/archive/releases/2012/37/image/a/",
    ),
    Photograph(
        "immunohistochemistry",
        "skimage",
        "data/ihc.png",
        "no known copyright restrictions, Center for Microscopy and Molecular "
        "Imaging (CMMI)",
    ),
    Photograph(
        # Only the left view: the right one shows the same scene.
        "motorcycle",
        "skimage",
        "data/motorcycle_left.png",
        "no licence stated, Middlebury Stereo 2014 (Scharstein et al., GCPR 2014); "
        "see http://vision.middlebury.edu/stereo/data/scenes2014/",
    ),
    Photograph(
        "retina",
        "skimage",
        "data/retina.jpg",
        "CC0 1.0, Mikael Häggström, https://commons.wikimedia.org/wiki/"
        "File:Fundus_photograph_of_normal_left_eye.jpg",
    ),
    Photograph(
        "rocket",
        "skimage",
        "data/rocket.jpg",
        "public domain, SpaceX, "
        "https://www.flickr.com/photos/spacexphotos/16511594820/",
    ),
)


def load_photos(shape: tuple[int, int, int] = (32, 32, 3)) -> Dataset:
    """Loads the crops, photograph by photograph, each from the top left by rows.

    Guarantees: the same crops in the same order whatever the shape, because a crop is
    kept or dropped by what it is at 32 x 32: kept where the standard deviation over
    its pixels, averaged over the three channels, is .08 or more. (Colour alone, such
    as a plain red square, does not count as structure.)

    Args:
      shape: (H, W, C) of the images; C = 1 gives luma.

    Raises:
      FileNotFoundError: a package no longer carries its photograph.
    """
    shape = check_shape(shape)
    images, labels = [], []
    for number, photograph in enumerate(PHOTOGRAPHS):
        for square in squares(read(photograph)):
            if deviation(resize(square, REFERENCE_SHAPE)) >= MIN_DEVIATION:
                images.append(resize(square, shape))
                labels.append(number)
    return Dataset(
        name="photos",
        inputs=np.stack(images),
        labels=labels,
        num_classes=len(PHOTOGRAPHS),
        groups=labels,
        licence="; ".join(f"{photo.name}: {photo.licence}" for photo in PHOTOGRAPHS),
        untrained_only=True,
        class_names=tuple(photo.name for photo in PHOTOGRAPHS),
    )


def read(photograph: Photograph) -> np.ndarray:
    """Reads a whole photograph [h, w, 3] uint8 from the package that carries it."""
    # The packages' own loaders download what is missing; a plain path cannot.
    spec = find_spec(photograph.package)
    if spec is None:
        raise FileNotFoundError(
            f"photograph {photograph.name!r} comes with the package "
            f"{photograph.package!r}, which is not installed"
        )
    path = Path(spec.origin).parent / photograph.path
    if not path.is_file():
        raise FileNotFoundError(
            f"photograph {photograph.name!r} is missing from the installed package "
            f"{photograph.package!r}: no file {path}"
        )
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def squares(pixels: np.ndarray) -> Iterator[np.ndarray]:
    """Cuts pixels [h, w, 3] into a centred grid of squares, by rows."""
    height, width = pixels.shape[:2]
    side = min(height, width) // SQUARES_PER_SIDE
    for top in range((height % side) // 2, height - side + 1, side):
        for left in range((width % side) // 2, width - side + 1, side):
            yield pixels[top : top + side, left : left + side]


def deviation(image: np.ndarray) -> float:
    """Measures structure: standard deviation over pixels, averaged over channels."""
    return float(image.std(axis=(0, 1)).mean())
