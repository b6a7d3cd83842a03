"""prepare_fashion_mnist: what it writes, and that it writes nothing by halves."""

import gzip
import time
from pathlib import Path

import numpy as np
import pytest

from kljax.data import PREPARERS, load, prepare, prepare_fashion_mnist
from kljax.data.mnist5k import prepare_mnist5k

DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # of package dataset-fashion-mnist
IMAGES = "t10k-images-idx3-ubyte.gz"
LABELS = "t10k-labels-idx1-ubyte.gz"


def rewrite(path: Path, change) -> None:
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(change(content)))


def header(path: Path, *sizes: int) -> None:
    """Writes an IDX file of zeros."""
    axes = np.array(sizes, ">u4").tobytes()
    values = bytes(int(np.prod(sizes)))
    path.write_bytes(gzip.compress(bytes((0, 0, 8, len(sizes))) + axes + values))


DAMAGE = {  # what is wrong -> (file, what is done to it, error, message)
    "missing": (IMAGES, Path.unlink, FileNotFoundError, "no IDX file"),
    "cut gzip": (
        IMAGES,
        lambda p: p.write_bytes(p.read_bytes()[:-50]),
        ValueError,
        "no complete gzip file",
    ),
    "flipped byte": (
        IMAGES,
        lambda p: p.write_bytes(
            p.read_bytes()[:500] + b"\x00\xff" + p.read_bytes()[502:]
        ),
        ValueError,
        "no complete gzip file",
    ),
    "not gzip": (
        LABELS,
        lambda p: p.write_bytes(gzip.decompress(p.read_bytes())),
        ValueError,
        "no complete gzip file",
    ),
    "not IDX": (
        LABELS,
        lambda p: p.write_bytes(gzip.compress(b"hello, this is text")),
        ValueError,
        "no IDX file",
    ),
    "empty": (LABELS, lambda p: p.write_bytes(b""), ValueError, "no IDX file"),
    "header alone": (
        LABELS,
        lambda p: rewrite(p, lambda content: content[:6]),
        ValueError,
        "no IDX file",
    ),
    "short": (
        LABELS,
        lambda p: rewrite(p, lambda content: content[:-1]),
        ValueError,
        "announces 20 values and holds 19",
    ),
    "long": (
        LABELS,
        lambda p: rewrite(p, lambda content: content + b"\x00"),
        ValueError,
        "announces 20 values and holds 21",
    ),
    "other sides": (
        IMAGES,
        lambda p: header(p, 20, 32, 28),
        ValueError,
        r"\(20, 32, 28\).*28, 28",
    ),
    "other count": (
        LABELS,
        lambda p: header(p, 19),
        ValueError,
        r"\(19,\) beside 20 images",
    ),
    "label out of range": (
        LABELS,
        lambda p: rewrite(p, lambda content: content[:-1] + b"\x0a"),
        ValueError,
        r"label 10.*\[0, 10\)",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_wrong_input_names_the_file_and_writes_nothing(damage, idx_dir, tmp_path):
    file, harm, error, message = DAMAGE[damage]
    harm(idx_dir / file)
    data_dir = tmp_path / "new" / "tfds"
    with pytest.raises(error, match=message) as caught:
        prepare_fashion_mnist(idx_dir, data_dir)
    assert str(idx_dir / file) in str(caught.value)
    assert not data_dir.parent.exists()


def test_what_is_written_is_what_was_read(tiny_fashion):
    data_dir, pairs = tiny_fashion
    for split, (images, labels) in pairs.items():
        data = load("fashion_mnist", shape=(28, 28, 1), split=split, data_dir=data_dir)
        assert len(data) == len(images)
        found, found_labels = data.fetch(range(len(data)))
        # TFDS shuffles; the corner pixel says which image this was.
        order = np.round(found[:, 0, 0, 0] * 255).astype(int)
        assert sorted(order) == list(range(len(images)))
        expected = images[order][..., None].astype(np.float32) / np.float32(255)
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(found_labels, labels[order])


def test_tfds_finds_the_set_on_its_own(tiny_fashion):
    import tensorflow_datasets as tfds

    data_dir, pairs = tiny_fashion
    source = tfds.data_source(
        "fashion_mnist", split="train", data_dir=data_dir, download=False
    )
    assert len(source) == len(pairs["train"][0])
    assert source[0]["image"].shape == (28, 28, 1)


def test_nothing_but_the_set_is_written(tiny_fashion):
    data_dir, _ = tiny_fashion
    assert [path.name for path in data_dir.iterdir()] == ["fashion_mnist"]
    (version,) = (data_dir / "fashion_mnist").iterdir()
    records = [path.name for path in version.iterdir() if "array_record" in path.name]
    assert len(records) == 2


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("existing", [False, True])
def test_an_interrupt_leaves_nothing(
    stop, existing, idx_dir, tmp_path, monkeypatch, request
):
    data_dir = tmp_path / "new" / "tfds"
    if existing:
        data_dir.mkdir(parents=True)
    written = 0

    def fail_at_last(image, encode=prepare._png):
        nonlocal written
        written += 1
        if written == 45:  # in the second split, the first being complete
            assert any(data_dir.rglob("*array_record*")), "TFDS has written nothing yet"
            raise stop("stopped")
        return encode(image)

    with monkeypatch.context() as patched:
        patched.setattr(prepare, "_png", fail_at_last)
        with pytest.raises(stop):
            prepare_fashion_mnist(idx_dir, data_dir)
    assert written == 45
    assert list((tmp_path / "new").rglob("*")) == ([data_dir] if existing else [])
    assert data_dir.exists() == existing
    # And a second try is not in the way of what the first one left.
    home = prepare_fashion_mnist(idx_dir, data_dir)
    assert home.is_dir()


def test_preparing_again_changes_nothing(idx_dir, tmp_path):
    home = prepare_fashion_mnist(idx_dir, tmp_path / "tfds")
    before = {path: path.stat().st_mtime_ns for path in home.iterdir()}
    assert prepare_fashion_mnist(idx_dir, tmp_path / "tfds") == home
    assert {path: path.stat().st_mtime_ns for path in home.iterdir()} == before


def test_another_set_in_the_way_is_not_overwritten(tiny_fashion, tmp_path):
    data_dir, _ = tiny_fashion
    for prefix, n in (("train", 3), ("t10k", 2)):
        header(tmp_path / f"{prefix}-images-idx3-ubyte.gz", n, 28, 28)
        header(tmp_path / f"{prefix}-labels-idx1-ubyte.gz", n)
    with pytest.raises(FileExistsError, match="30.*where the source has.*3") as caught:
        prepare_fashion_mnist(tmp_path, data_dir)
    assert str(data_dir) in str(caught.value)


def test_preparers_are_named_after_their_sets():
    assert PREPARERS == {
        "fashion_mnist": prepare_fashion_mnist,
        "mnist5k": prepare_mnist5k,
    }


@pytest.mark.slow
def test_the_real_fashion_mnist_is_prepared_whole(tmp_path):
    if not DEBIAN.is_dir():
        pytest.skip(f"no {DEBIAN}: Debian's dataset-fashion-mnist is not installed")
    started = time.monotonic()
    prepare_fashion_mnist(DEBIAN, tmp_path)
    assert time.monotonic() - started < 300  # about 10 s on an idle machine
    train = load("fashion_mnist", data_dir=tmp_path)
    test = load("fashion_mnist", split="test", data_dir=tmp_path)
    assert (len(train), len(test)) == (60_000, 10_000)
    _, labels = test.fetch(range(10_000))
    assert np.bincount(labels).tolist() == [1000] * 10
    images, _ = train.fetch(range(64))
    assert images.shape == (64, 32, 32, 3)
    assert train.class_names[9] == "Ankle boot"
