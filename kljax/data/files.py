"""Datasets from files of one's own: an ``.npz`` file, or a folder of pictures.

An image is read, or brought to its shape, only when it is asked for.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from kljax.core.files import DamagedFile, read_arrays
from kljax.data.dataset import Dataset, LazyColumn
from kljax.data.resizing import check_shape, resize

NPZ = ".npz"
# How a path begins, unless it ends in .npz: TFDS names may hold a "/", too.
STARTS = ("/", "./", "../", "~")
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
PICTURES += (".pgm", ".ppm")
# Modes of Pillow. Others it turns into 8 bits by cutting values off, or not at all.
GREY = ("1", "L", "LA")
COLOUR = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
DEEP = "I;16"  # how those begin that are grey of 16 bits
REMEDY = "write it by numpy.savez, with arrays images and labels"
MADE_UP = 10  # classes of pictures that have none
LABELS_END = 2**31  # labels are int32
UNSTATED = "not stated; whoever gave {path} knows"


class ResizedImages(LazyColumn):
    """Images of an array, brought to a shape when they are asked for."""

    def __init__(self, images: np.ndarray, shape: tuple[int, int, int]):
        self._images = images
        self.shape = (len(images), *shape)

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        images = np.empty((len(indices), *self.shape[1:]), np.float32)
        for row, index in enumerate(indices):
            try:
                images[row] = resize(self._images[index], self.shape[1:])
            except ValueError as error:
                raise ValueError(f"image {index}: {error}") from error
        return images


class PictureFiles(LazyColumn):
    """Pictures of files, read and brought to a shape when they are asked for."""

    def __init__(self, paths: list[Path], shape: tuple[int, int, int]):
        self._paths = paths
        self.shape = (len(paths), *shape)

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        images = np.empty((len(indices), *self.shape[1:]), np.float32)
        for row, index in enumerate(indices):
            images[row] = resize(_read_picture(self._paths[index]), self.shape[1:])
        return images


def is_path(name: str) -> bool:
    """Tells whether the name of a dataset is meant as a path."""
    return name.endswith((NPZ, "/")) or name.startswith(STARTS)


def load_path(name: str, shape: tuple[int, int, int] = (32, 32, 3)) -> Dataset:
    """Opens an ``.npz`` file, or a folder of pictures, with a subfolder per class.

    A file holds ``images`` [N, h, w] or [N, h, w, c] (c = 1 or 3; uint8, uint16, or
    floating point in [0, 1]) and ``labels`` [N] (integers from 0), and may hold
    ``class_names`` [Kc], ``groups`` [N] and ``licence``, see `Dataset`. In a folder,
    classes are the subfolders in alphabetic order. Pictures that lie in the folder
    itself have no classes: their labels go round 0 to `MADE_UP` - 1 in alphabetic
    order, good for a gradient and for nothing that is learned
    (`Dataset.untrained_only`). Images are cropped at the centre to the aspect ratio of
    `shape` and resized to it, as those of TFDS.

    Pictures have 8 bits per channel, or 16 if they are grey. One with an alpha channel
    is read if it is opaque everywhere, and refused otherwise: what lies behind it is
    not known.

    Args:
      name: of the file or folder; ``~`` is the user's home.
      shape: (H, W, C) of the images, C = 1 or 3.

    Raises:
      FileNotFoundError: if there is nothing of that name.
      ValueError: for a damaged file, one without these arrays, or with others than
        these shapes and types; a folder without pictures, or with some beside
        subfolders; a subfolder without any;
        and, when it is read, a picture that is none, has values of 32 bits, or is
        transparent somewhere.
    """
    shape, path = check_shape(shape), Path(name).expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f"dataset {name!r}: there is no such file or folder (here is {Path.cwd()})"
        )
    if path.is_dir():
        return _load_folder(name, path, shape)
    if path.suffix != NPZ:
        raise ValueError(
            f"dataset {name!r} is neither a folder nor a file that ends in {NPZ}"
        )
    return _load_npz(name, path, shape)


def stamp_path(name: str) -> tuple[tuple[str, int, int], ...]:
    """Says which files a path is read from: (path, mtime [ns], size) of each."""
    path = Path(name).expanduser().resolve()
    files = [path] if path.is_file() else [p for p in _below(path) if p.is_file()]
    seen = ((str(file), file.stat()) for file in files)
    return tuple((file, stat.st_mtime_ns, stat.st_size) for file, stat in seen)


def _load_npz(name: str, path: Path, shape: tuple[int, int, int]) -> Dataset:
    try:
        arrays = read_arrays(path, remedy=REMEDY) or {}
    except DamagedFile as error:
        raise ValueError(f"dataset {name!r} is no sound {NPZ} file: {error}") from error
    missing = [key for key in ("images", "labels") if key not in arrays]
    if missing:
        raise ValueError(
            f"dataset {name!r} has no array {missing[0]!r}; it has "
            f"{', '.join(arrays) or 'none'}"
        )
    images, labels = arrays["images"], arrays["labels"]
    if images.ndim not in (3, 4) or 0 in images.shape:
        raise ValueError(
            f"dataset {name!r}: images has shape {images.shape}; give [N, h, w] or "
            "[N, h, w, c], none of them 0"
        )
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"dataset {name!r}: labels has shape {labels.shape} and type "
            f"{labels.dtype}; give [N] integers"
        )
    names = arrays.get("class_names")
    if names is not None and (names.ndim != 1 or not len(names)):
        raise ValueError(
            f"dataset {name!r}: class_names has shape {names.shape}; give [Kc], one "
            "name per class"
        )
    if names is not None:
        classes = len(names)
    else:  # as Python's integer, since 1 more may not fit the type of the labels
        largest = int(labels.max()) if len(labels) else 0
        classes = min(max(largest + 1, 1), LABELS_END)
    outside = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(outside):
        raise ValueError(
            f"dataset {name!r}: the label of example {outside[0]} is "
            f"{labels[outside[0]]}, and labels must lie in [0, {classes})"
        )
    return Dataset(
        name=name,
        inputs=ResizedImages(images, shape),
        labels=labels.astype(np.int32),
        num_classes=classes,
        groups=arrays.get("groups"),
        licence=str(arrays.get("licence", UNSTATED.format(path=name))),
        class_names=None if names is None else tuple(map(str, names)),
    )


def _load_folder(name: str, path: Path, shape: tuple[int, int, int]) -> Dataset:
    folders = [folder for folder in _below(path, deep=False) if folder.is_dir()]
    loose = [p for p in _below(path, deep=False) if p.suffix.lower() in PICTURES]
    if not folders:
        if not loose:
            raise ValueError(
                f"dataset {name!r} has no subfolders of pictures, one per class, and "
                f"no pictures either; they end in {', '.join(PICTURES)}"
            )
        return Dataset(
            name=name,
            inputs=PictureFiles(loose, shape),
            labels=np.arange(len(loose)) % MADE_UP,
            num_classes=MADE_UP,
            groups=None,
            licence=UNSTATED.format(path=name),
            untrained_only=True,
        )
    if loose:
        raise ValueError(
            f"dataset {name!r} has pictures beside its class folders, such as "
            f"{loose[0].name!r}: put each into a class, or all into one folder"
        )
    paths, labels = [], []
    for label, folder in enumerate(folders):
        pictures = [p for p in _below(folder) if p.suffix.lower() in PICTURES]
        if not pictures:
            raise ValueError(
                f"dataset {name!r}: class folder {folder.name!r} has no pictures; "
                f"they end in {', '.join(PICTURES)}"
            )
        paths += pictures
        labels += [label] * len(pictures)
    return Dataset(
        name=name,
        inputs=PictureFiles(paths, shape),
        labels=np.asarray(labels),
        num_classes=len(folders),
        groups=None,
        licence=UNSTATED.format(path=name),
        class_names=tuple(folder.name for folder in folders),
    )


def _below(path: Path, deep: bool = True) -> list[Path]:
    """Lists what is in a folder, in alphabetic order, but for hidden files."""
    there = path.rglob("*") if deep else path.iterdir()
    seen = (p for p in there if not any(n[0] == "." for n in p.relative_to(path).parts))
    return sorted(seen)


def _read_picture(path: Path) -> np.ndarray:
    """Reads a picture: [h, w] grey or [h, w, 3] colour, turned as its camera says.

    Raises:
      ValueError: for what Pillow cannot read, a mode that has no exact 8 or 16 bits,
        and a picture that is not opaque; the file is named.
    """
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is no picture that can be read: {error}") from error
    deep = image.mode.startswith(DEEP)
    if not deep and image.mode not in GREY + COLOUR:
        raise ValueError(
            f"{path} is a picture of Pillow's mode {image.mode}, whose values have no "
            "fixed white; save it with 8 bits per channel"
        )
    if not _is_opaque(image):
        raise ValueError(
            f"{path} is transparent somewhere; save it without an alpha channel, on "
            "the background that it is to have"
        )
    if deep:
        return np.asarray(image).astype(np.uint16)
    return np.asarray(image.convert("L" if image.mode in GREY else "RGB"))


def _is_opaque(image: Image.Image) -> bool:
    if not image.has_transparency_data:
        return True
    if image.mode.startswith(DEEP):  # one grey is transparent
        return image.info["transparency"] not in np.asarray(image)
    return image.convert("RGBA").getchannel("A").getextrema()[0] == 255
