"""Writes TFDS data sets from files already on disk, without network or TensorFlow.

TFDS downloads Fashion-MNIST and encodes it with TensorFlow. Both steps fall away when
the four IDX files are at hand (Debian's package ``dataset-fashion-mnist`` installs
them) and images reach TFDS as PNG bytes. What comes out is the ordinary TFDS set of
that name, which ``tfds.data_source`` finds.
"""

import gzip
import io
import math
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from kljax.data.mnist5k import prepare_mnist5k

IDX_UINT8 = 8  # the type byte of the IDX format
SPLITS = {"train": "train", "test": "t10k"}  # TFDS split -> what its files start with


def prepare_fashion_mnist(source_dir: str, data_dir: str | None = None) -> Path:
    """Writes TFDS's ``fashion_mnist`` from its four IDX files.

    Takes about 10 s. All four files are read and checked before anything is written,
    and TFDS writes to a directory it renames at the end, so a failure leaves no
    data set behind. A set that is prepared already is left as it is.

    Args:
      source_dir: directory of ``train-images-idx3-ubyte.gz``,
        ``train-labels-idx1-ubyte.gz``, ``t10k-images-idx3-ubyte.gz`` and
        ``t10k-labels-idx1-ubyte.gz``, such as /usr/share/datasets/fashion-mnist.
      data_dir: where TFDS keeps prepared sets; None is TFDS's own default.

    Returns:
      The directory of the prepared set.

    Raises:
      FileNotFoundError: an IDX file is missing.
      ValueError: an IDX file is damaged, or does not hold what it should.
      FileExistsError: another ``fashion_mnist`` is prepared under ``data_dir``.
    """
    import tensorflow_datasets as tfds

    num_classes = 10
    examples = {
        split: _read_pair(Path(source_dir), prefix, (28, 28), num_classes)
        for split, prefix in SPLITS.items()
    }

    class FromIdx(tfds.builder_cls("fashion_mnist"), skip_registration=True):
        name = "fashion_mnist"

        def _split_generators(self, dl_manager):
            del dl_manager
            return {
                split: self._generate_examples(*pair)
                for split, pair in examples.items()
            }

        def _generate_examples(self, images, labels):
            for index, (image, label) in enumerate(zip(images, labels, strict=True)):
                yield index, {"image": _png(image), "label": int(label)}

    builder = FromIdx(data_dir=data_dir)
    home = Path(builder.data_dir)
    if builder.is_prepared():
        _check_same(builder, examples)
        return home
    created = _missing_parents(home)
    try:
        # TFDS insists on a directory for downloads, though there are none.
        with tempfile.TemporaryDirectory() as downloads:
            builder.download_and_prepare(
                download_dir=downloads,
                download_config=tfds.download.DownloadConfig(try_download_gcs=False),
                file_format="array_record",
            )
    except BaseException:  # an interrupt too must leave nothing
        for parent in created:
            if parent.is_dir() and not any(parent.iterdir()):
                parent.rmdir()
        raise
    return home


PREPARERS: dict[str, Callable[..., Path]] = {
    "fashion_mnist": prepare_fashion_mnist,
    "mnist5k": prepare_mnist5k,
}
# Those that can be downloaded where no files are given.
DOWNLOADED = frozenset({"mnist5k"})


def read_idx(path: Path) -> np.ndarray:
    """Reads a gzipped IDX file of bytes, of any number of axes.

    Format: bytes 0, 0, type, number of axes; the axes as big-endian 32-bit integers;
    the values (http://yann.lecun.com/exdb/mnist/).

    Raises:
      FileNotFoundError: no such file.
      ValueError: not gzip, not IDX, or not as long as its header says.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except FileNotFoundError:
        raise FileNotFoundError(f"no IDX file {path}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is no complete gzip file: {error}") from error
    axes = content[3] if len(content) > 3 else 0
    start = 4 + 4 * axes
    if axes == 0 or len(content) < start or content[:3] != bytes((0, 0, IDX_UINT8)):
        raise ValueError(f"{path} is no IDX file of bytes: it starts {content[:4]!r}")
    sizes = np.frombuffer(content, ">u4", axes, offset=4).tolist()
    if len(content) - start != math.prod(sizes):
        raise ValueError(
            f"{path} announces {' x '.join(map(str, sizes))} values and holds "
            f"{len(content) - start}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(sizes)


def _read_pair(
    folder: Path, prefix: str, sides: tuple[int, int], num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    image_path = folder / f"{prefix}-images-idx3-ubyte.gz"
    label_path = folder / f"{prefix}-labels-idx1-ubyte.gz"
    images, labels = read_idx(image_path), read_idx(label_path)
    if images.ndim != 3 or images.shape[1:] != sides:
        raise ValueError(
            f"{image_path} holds shape {images.shape}; images are (n, {sides[0]}, "
            f"{sides[1]})"
        )
    if labels.ndim != 1 or len(labels) != len(images) or len(labels) == 0:
        raise ValueError(
            f"{label_path} holds shape {labels.shape} beside {len(images)} images in "
            f"{image_path.name}; one label per image is needed"
        )
    if labels.max() >= num_classes:
        raise ValueError(
            f"{label_path} holds label {labels.max()}; labels must lie in "
            f"[0, {num_classes})"
        )
    return images, labels


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="png")
    return buffer.getvalue()


def _check_same(builder, examples) -> None:
    there = {name: split.num_examples for name, split in builder.info.splits.items()}
    asked = {name: len(labels) for name, (_, labels) in examples.items()}
    if there != asked:
        raise FileExistsError(
            f"{builder.data_dir} holds another {builder.name}, with examples {there} "
            f"where the source has {asked}; delete it, or give another data_dir"
        )


def _missing_parents(path: Path) -> list[Path]:
    """Lists the parents of a directory that do not exist yet, innermost first."""
    return [parent for parent in path.parents if not parent.exists()]
