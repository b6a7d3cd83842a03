"""Recipe: a dataset. A path, a prepared set of TFDS, or a function of one's own."""

import gzip

import numpy as np
import pytest
from PIL import Image

from kljax import cli

COUNT = 6
PIXELS = np.random.default_rng(0).integers(0, 256, (COUNT, 10, 12, 3), np.uint8)
LABELS = np.arange(COUNT) % 2


def write_file(place):
    np.savez(place / "mine.npz", images=PIXELS, labels=LABELS)
    return "mine.npz"


def write_folder(place):
    for n, (pixels, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
        folder = place / "pictures" / ("cats", "dogs")[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{n}.png")
    return "./pictures"


def write_function(place):
    (place / "mine.py").write_text(
        """
import numpy as np
from kljax import data

def noise(shape):
    images = np.random.default_rng(0).random((6, *shape), np.float32)
    labels = np.arange(6) % 2
    return data.Dataset("noise", images, labels, 2, groups=None, licence="none needed")
"""
    )
    return "mine:noise"


@pytest.mark.slow
@pytest.mark.parametrize("write", (write_file, write_folder, write_function))
def test_a_dataset_is_attacked(mine, leak, tmp_path, write):
    name = write(tmp_path)
    job = leak("--data", name)
    assert {row["data"] for row in job.rows} == {name}
    assert {row["label"] for row in job.rows} <= {"0", "1"}
    assert f"# Leakage of `dense` on `{name}`" in job.report
    # With floors that are made of it.
    assert "floor: data_mean" in job.report


def test_a_prepared_set_of_tfds_is_attacked(leak, tmp_path):
    for split, count in (("train", 30), ("t10k", 20)):
        pixels = np.random.default_rng(0).integers(0, 256, (count, 28, 28), np.uint8)
        for kind, array in (
            ("images-idx3", pixels),
            ("labels-idx1", (np.arange(count) % 10).astype(np.uint8)),
        ):
            header = bytes((0, 0, 8, array.ndim))
            header += np.array(array.shape, ">u4").tobytes()
            file = tmp_path / f"{split}-{kind}-ubyte.gz"
            file.write_bytes(gzip.compress(header + array.tobytes()))
    prepare = "data prepare fashion_mnist --from . --data-dir prepared"
    assert cli.main(prepare.split()) == 0
    job = leak("--data", "fashion_mnist", "--data-dir", "prepared")
    assert {row["data"] for row in job.rows} == {"fashion_mnist"}
    assert "# Leakage of `dense` on `fashion_mnist`" in job.report
