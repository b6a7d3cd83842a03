"""Small IDX files and TFDS sets, really written, for the tests of this room."""

import gzip

import numpy as np
import pytest

from kljax.data import prepare_fashion_mnist


def idx_bytes(array: np.ndarray) -> bytes:
    header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
    return header + array.astype(np.uint8).tobytes()


def write_idx(path, array: np.ndarray) -> None:
    path.write_bytes(gzip.compress(idx_bytes(array)))


def make_idx(folder, train: int = 30, test: int = 20) -> dict[str, tuple]:
    """Writes four IDX files; image i of a split has the corner pixel i."""
    rng = np.random.default_rng(0)
    pairs = {}
    for split, prefix, n in (("train", "train", train), ("test", "t10k", test)):
        images = rng.integers(0, 256, (n, 28, 28), np.uint8)
        images[:, 0, 0] = np.arange(n)
        labels = (np.arange(n) * 7 % 10).astype(np.uint8)
        write_idx(folder / f"{prefix}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", labels)
        pairs[split] = (images, labels)
    return pairs


@pytest.fixture
def idx_dir(tmp_path):
    """A directory with the four IDX files, which a test may damage."""
    folder = tmp_path / "idx"
    folder.mkdir()
    make_idx(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_fashion(tmp_path_factory):
    """A prepared fashion_mnist of 30 + 20 images: (data_dir, what it was made of)."""
    source = tmp_path_factory.mktemp("idx")
    pairs = make_idx(source)
    data_dir = tmp_path_factory.mktemp("tfds")
    prepare_fashion_mnist(source, data_dir)
    return data_dir, pairs
