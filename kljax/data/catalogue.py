"""Which data sets there are, by name."""

import difflib
import functools
import math
from collections.abc import Callable
from pathlib import Path

from kljax.core.memory import check_fits
from kljax.core.places import cache_folder
from kljax.data import tfds
from kljax.data.dataset import Dataset
from kljax.data.digits import load_digits
from kljax.data.faces import load_faces
from kljax.data.files import is_path, load_path, stamp_path
from kljax.data.mnist5k import load_mnist5k
from kljax.data.photos import load_photos
from kljax.data.resizing import check_shape
from kljax.data.tables import TABLES
from kljax.data.text import load_text
from kljax.data.tfds import list_tfds, load_tfds

# Data sets that need neither network nor preparation.
EMBEDDED: dict[str, Callable[..., Dataset]] = {
    "digits": load_digits,
    "photos": load_photos,
    "faces": load_faces,
    "text": load_text,
    "text-verses": functools.partial(load_text, whole=True),
    "text-next-token": functools.partial(load_text, next_token=True),
    **TABLES,
}
# Data sets that `kljax data prepare` puts into the user's cache folder.
PREPARED: dict[str, Callable[..., Dataset]] = {"mnist5k": load_mnist5k}
# Those whose examples are sentences, of a length and not of a shape.
TEXTS = frozenset({"text", "text-verses", "text-next-token"})
# How many images they have. All are made at once, twice in memory for a moment.
SIZES = {"digits": 1797, "photos": 362, "faces": 200}


def load(
    name: str,
    *,
    shape: tuple[int, int, int] = (32, 32, 3),
    length: int = 8,
    split: str | None = None,
    data_dir: str | None = None,
) -> Dataset:
    """Loads a data set by name.

    Args:
      name: an embedded set (one of `EMBEDDED`), a path (``"mine.npz"``, or
        ``"./pictures"`` with a folder per class, see `kljax.data.files`), or the TFDS
        name of a prepared set (``"mnist"``, ``"cifar10"``, ``"fashion_mnist"``, ...).
      shape: (H, W, C) of the images, C = 1 or 3; of no meaning for a table.
      length: tokens of a sentence, where the data is text.
      split: TFDS split (None is ``"train"``); embedded sets and paths have none.
      data_dir: where TFDS keeps prepared sets (None is TFDS's own default); embedded
        sets and paths need none.

    Raises:
      ValueError: an unknown name, with the nearest known one; a split asked of an
        embedded set or a path; and what `load_path` and `load_tfds` raise.
      FileNotFoundError: no such path; a TFDS set that is not prepared, with the
        command to prepare it.
    """
    if not isinstance(name, str):
        raise TypeError(f"the name of a dataset is {name!r}; give a string")
    if split is not None and not has_splits(name):
        raise ValueError(
            f"dataset {name!r} has no splits, and split is {split!r}; leave it out"
        )
    if is_path(name):
        return load_path(name, shape)
    if name in TEXTS:
        return EMBEDDED[name](length)
    if name in TABLES:
        return EMBEDDED[name]()
    if name in EMBEDDED:
        shape = check_shape(shape)
        needed = 2 * 4 * SIZES[name] * math.prod(shape)
        check_fits(needed, f"dataset {name!r} in shape {shape}", "image_size")
        return EMBEDDED[name](shape)
    if name in PREPARED:
        return PREPARED[name](shape, data_dir)
    try:
        return load_tfds(name, shape=shape, split=split, data_dir=data_dir)
    except LookupError as error:
        raise ValueError(_unknown(name)) from error


def has_splits(name: str) -> bool:
    """Tells whether a dataset has splits: those of TFDS do."""
    own = name in EMBEDDED or name in PREPARED
    return not (own or is_path(name) or ":" in name)


def stamp(name: str, data_dir: str | None = None) -> tuple[tuple[str, int, int], ...]:
    """Says which files a data set is read from: (path, mtime [ns], size) of each."""
    if is_path(name):
        return stamp_path(name)
    if name in PREPARED:
        return stamp_path(str(Path(data_dir or cache_folder()) / f"{name}.npz"))
    return () if name in EMBEDDED else tfds.stamp(name, data_dir)


def _unknown(name: str) -> str:
    known = [*EMBEDDED, *PREPARED, *list_tfds()]
    near = difflib.get_close_matches(name, known, n=1)
    guess = f" (did you mean {near[0]!r}?)" if near else ""
    if Path(name).is_dir():
        guess = f"; if the folder of that name is meant, write './{name}'"
    return (
        f"unknown dataset {name!r}{guess}; embedded are {', '.join(EMBEDDED)}, and any "
        "prepared TFDS set can be named, such as mnist, cifar10, fashion_mnist, or a "
        "path, such as mine.npz or ./pictures"
    )
