"""TFDS sets, really written, without TensorFlow, reading little."""

import io
import json
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from PIL import Image

from kljax.data import (
    fetch_batches,
    load,
    local_batches,
    partition,
    select,
    stacked,
)
from kljax.data.tfds import TfdsImages, TfdsLabels, list_tfds


def encoded(pixels: np.ndarray, form: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=form)
    return buffer.getvalue()


PICTURES = [  # sizes and encodings as a set of photographs off the web has them
    encoded(np.tile(np.linspace(0, 255, 60, dtype=np.uint8), (40, 1)), "png"),
    encoded(np.random.default_rng(0).integers(0, 256, (30, 50, 3), np.uint8), "jpeg"),
    encoded(np.tile(np.linspace(0, 255, 48, dtype=np.uint8), (80, 1)), "jpeg"),
    encoded(np.full((20, 20, 3), 77, np.uint8), "png"),
]


@pytest.fixture(scope="session")
def scraps(tmp_path_factory):
    """A set TFDS has no code for: odd sizes, grey among colour, other features."""
    import tensorflow_datasets as tfds

    class Scraps(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "picture": tfds.features.Image(shape=(None, None, 3)),
                "kind": tfds.features.ClassLabel(names=["a", "b"]),
                "note": tfds.features.Text(),
            }
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                supervised_keys=("picture", "kind"),
                license="made up",
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager):
            return {"validation": self._generate_examples()}

        def _generate_examples(self):
            for index, picture in enumerate(PICTURES):
                yield index, {"picture": picture, "kind": index % 2, "note": "x"}

    data_dir = tmp_path_factory.mktemp("scraps")
    builder = Scraps(data_dir=data_dir)
    builder.download_and_prepare(
        file_format="array_record", download_dir=tmp_path_factory.mktemp("downloads")
    )
    return data_dir


def test_grey_sets_become_float_colour_images(tiny_fashion):
    data_dir, pairs = tiny_fashion
    data = load("fashion_mnist", data_dir=data_dir)
    assert (len(data), data.shape, data.num_classes) == (30, (32, 32, 3), 10)
    assert data.class_names[0] == "T-shirt/top"
    assert (data.name, data.groups, data.untrained_only) == (
        "fashion_mnist",
        None,
        False,
    )
    assert "fashion-mnist" in data.licence
    images, labels = data.fetch(select(data, 8, seed=1))
    assert (images.shape, images.dtype) == ((8, 32, 32, 3), np.float32)
    assert labels.dtype == np.int32
    assert 0 <= images.min() and 0.5 < images.max() <= 1
    np.testing.assert_array_equal(images[..., 0], images[..., 2])


@pytest.mark.parametrize(
    "split, length", [(None, 30), ("train", 30), ("test", 20), ("train[:7]", 7)]
)
def test_splits_and_slices(split, length, tiny_fashion):
    data = load("fashion_mnist", split=split, data_dir=tiny_fashion[0])
    assert len(data) == length


def test_fetching_is_deterministic_and_ordered(tiny_fashion):
    data = load("fashion_mnist", data_dir=tiny_fashion[0])
    images, labels = data.fetch([4, 9, 4])
    again, _ = load("fashion_mnist", data_dir=tiny_fashion[0]).fetch([9])
    np.testing.assert_array_equal(images[0], images[2])
    np.testing.assert_array_equal(images[1], again[0])
    assert np.abs(images[0] - images[1]).max() > 0.1
    assert labels[0] == labels[2]


def test_a_version_may_be_named(tiny_fashion):
    data = load("fashion_mnist:3.0.1", data_dir=tiny_fashion[0])
    assert len(data) == 30


def test_odd_sizes_other_feature_names_and_sets_without_code(scraps):
    data = load("scraps", split="validation", data_dir=scraps, shape=(24, 24, 3))
    assert (data.licence, data.class_names) == ("made up", ("a", "b"))
    images, labels = data.fetch([0, 1, 2])
    assert images.shape == (3, 24, 24, 3)
    assert labels.tolist() == [0, 1, 0]
    for grey in (0, 2):
        np.testing.assert_array_equal(images[grey, ..., 0], images[grey, ..., 1])
        # A ramp from left to right: upright, and neither mirrored nor turned.
        assert np.all(np.diff(images[grey, 12, :, 0]) > 0)
    # 40 x 60 is cut to its middle 40 x 40: the ramp's ends are gone.
    assert 0.1 < images[0].min() and images[0].max() < 0.9
    assert images[1].std(axis=-1).mean() > 0.02


def test_a_constant_image_is_refused_when_it_is_fetched(scraps):
    data = load("scraps", split="validation", data_dir=scraps)
    with pytest.raises(ValueError, match="image 3 of dataset 'scraps' is constant"):
        data.fetch([1, 3])


FEDERATED = {  # name -> shape and encoding of its pictures, classes, its test split
    "mnist": ((28, 28, 1), "png", 10, "test"),
    "fashion_mnist": ((28, 28, 1), "png", 10, "test"),
    "cifar10": ((32, 32, 3), "png", 10, "test"),
    "cifar100": ((32, 32, 3), "png", 100, "test"),
    "imagenet2012": ((50, 40, 3), "jpeg", 1000, "validation"),
}
OTHER_FEATURES = {
    "cifar10": lambda index: {"id": f"train_{index}"},
    "cifar100": lambda index: {"id": f"train_{index}", "coarse_label": index % 20},
    "imagenet2012": lambda index: {"file_name": f"n{index}.JPEG"},
}


def prepare_tiny(dataset, data_dir, downloads, counts):
    """Writes a set as TFDS would, with its own features, from made-up pictures."""
    import tensorflow_datasets as tfds

    shape, form, classes, _ = FEDERATED[dataset]
    official = tfds.builder_cls(dataset)
    others = OTHER_FEATURES.get(dataset, lambda index: {})

    class Tiny(official, skip_registration=True):
        name = dataset
        pkg_dir_path = official._get_pkg_dir_path()  # its description lies there

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(n) for split, n in counts.items()}

        def _generate_examples(self, count):
            for index in range(count):
                generator = np.random.default_rng(index)
                pixels = generator.integers(0, 256, shape, np.uint8)
                picture = encoded(pixels.squeeze(), form)
                label = (classes - 1 - index) % classes
                yield index, {"image": picture, "label": label} | others(index)

    builder = Tiny(data_dir=data_dir)
    builder.download_and_prepare(file_format="array_record", download_dir=downloads)


@pytest.mark.parametrize("name", FEDERATED)
def test_sets_to_train_on_have_splits_to_train_and_to_test_on(name, tmp_path):
    _, _, classes, test_split = FEDERATED[name]
    counts = {"train": 12, test_split: 5}
    prepare_tiny(name, tmp_path / "tfds", tmp_path / "downloads", counts)
    for split, count in counts.items():
        data = load(name, split=split, data_dir=tmp_path / "tfds")
        assert (len(data), data.shape) == (count, (32, 32, 3))
        assert data.num_classes == classes
        images, labels = data.fetch(np.arange(count))
        assert images.shape == (count, 32, 32, 3) and labels.dtype == np.int32
        assert sorted(labels) == sorted((classes - 1 - np.arange(count)) % classes)
        # And as clients would take it.
        parts = partition("iid", data.labels, 2, seed=0)
        drawn = [
            local_batches(part, batch=2, epochs=1, seed=0, round=0, client=i)
            for i, part in enumerate(parts)
        ]
        images, labels = fetch_batches(data, stacked(drawn)[0])
        assert images.shape[:3] == labels.shape == (2, len(parts[0]) // 2, 2)


class Endless:
    """As long as ImageNet, and makes a record only when asked for it."""

    def __init__(self, key):
        self.key, self.asked = key, []

    def __len__(self):
        return 1_281_167

    def __getitem__(self, index):
        self.asked.append(index)
        picture = np.random.default_rng(index).integers(0, 256, (9, 12, 3), np.uint8)
        return {"image": picture, "label": index % 1000}


def test_large_sets_are_read_only_where_asked():
    pictures, numbers = Endless("image"), Endless("label")
    images = TfdsImages(pictures, "image", (8, 8, 3))
    labels = TfdsLabels(numbers, "label")
    assert images.shape == (1_281_167, 8, 8, 3) and labels.shape == (1_281_167,)
    wanted = np.array([1_281_166, 5])
    assert images[wanted].shape == (2, 8, 8, 3)
    assert labels[wanted].tolist() == [166, 5]
    assert pictures.asked == numbers.asked == [1_281_166, 5]


def test_labels_are_read_without_decoding_images(tiny_fashion, monkeypatch):
    import tensorflow_datasets as tfds

    def refuse(self, example):
        raise AssertionError("an image was decoded")

    data = load("fashion_mnist", data_dir=tiny_fashion[0])
    monkeypatch.setattr(tfds.features.Image, "decode_example_np", refuse)
    assert len(data.labels[np.arange(30)]) == 30
    with pytest.raises(AssertionError, match="was decoded"):
        data.inputs[np.arange(1)]


@pytest.mark.parametrize(
    "name, option, command",
    [
        ("fashion_mnist", None, "kljax data prepare fashion_mnist --from DIR"),
        ("fashion_mnist:3.0.1", None, "kljax data prepare fashion_mnist --from DIR"),
        ("cifar10", None, "tfds build cifar10 --file_format=array_record"),
        ("emnist/letters", None, "tfds build emnist/letters --file_format"),
        ("imagenet2012", "validation", "tfds build imagenet2012"),
    ],
)
def test_a_set_not_prepared_is_named_with_the_command(name, option, command, tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        load(name, split=option, data_dir=tmp_path)
    message = str(caught.value)
    assert repr(name) in message and command in message
    assert message.count(str(tmp_path)) == 2  # where it was sought, and in the command
    assert list(tmp_path.iterdir()) == []


def test_a_set_without_random_access_is_explained(tiny_fashion, tmp_path):
    (source,) = (tiny_fashion[0] / "fashion_mnist").iterdir()
    home = tmp_path / "fashion_mnist" / source.name
    home.mkdir(parents=True)
    for path in source.iterdir():
        copy = home / path.name.replace("array_record", "tfrecord")
        copy.write_bytes(path.read_bytes())
    info = json.loads((home / "dataset_info.json").read_text())
    info["fileFormat"] = "tfrecord"
    (home / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(FileNotFoundError, match="as tfrecord.*no random access"):
        load("fashion_mnist", data_dir=tmp_path)


def test_an_unknown_split_lists_the_splits(tiny_fashion):
    with pytest.raises(ValueError, match="'fashion_mnist'.*'trian'.*test, train"):
        load("fashion_mnist", split="trian", data_dir=tiny_fashion[0])


def test_the_default_split_is_named_where_there_is_none(scraps):
    with pytest.raises(ValueError, match="'scraps'.*'train'.*validation"):
        load("scraps", data_dir=scraps)


def test_a_set_without_class_labels_lists_its_features(tmp_path):
    with pytest.raises(ValueError, match="'voc'.*ClassLabel.*labels_no_difficult"):
        load("voc", data_dir=tmp_path)


@pytest.mark.parametrize(
    "name, message",
    [
        ("fashion_mnits", "did you mean 'fashion_mnist'"),
        ("cifar", "did you mean 'cifar10'"),
        ("photo", "did you mean 'photos'"),
        ("DIGIT", "embedded are digits, photos"),
        ("package.module:function", "unknown dataset"),
        ("huggingface:mnist", "unknown dataset"),
        ("", "unknown dataset"),
    ],
)
def test_unknown_names_get_the_nearest(name, message):
    with pytest.raises(ValueError, match=message) as caught:
        load(name)
    assert repr(name) in str(caught.value)


def test_a_name_is_a_string():
    with pytest.raises(TypeError, match="give a string"):
        load(7)


def test_the_names_of_tfds_are_known():
    names = {"mnist", "cifar10", "cifar100", "fashion_mnist", "imagenet2012"}
    assert names <= set(list_tfds())


def test_tensorflow_is_imported_neither_to_prepare_nor_to_load(idx_dir, tmp_path):
    """With a TensorFlow that can be imported, so that an import would be seen."""
    (tmp_path / "path" / "tensorflow").mkdir(parents=True)
    (tmp_path / "path" / "tensorflow" / "__init__.py").write_text("__version__ = '2'")
    script = f"""
        import sys
        sys.path.insert(0, {str(tmp_path / "path")!r})
        from kljax.data import load, prepare_fashion_mnist
        assert "tensorflow_datasets" not in sys.modules, "not lazy"
        load("photos")
        assert "tensorflow_datasets" not in sys.modules, "not lazy"
        prepare_fashion_mnist({str(idx_dir)!r}, {str(tmp_path / "tfds")!r})
        data = load("fashion_mnist", data_dir={str(tmp_path / "tfds")!r})
        assert data.fetch([0, 29])[0].shape == (2, 32, 32, 3)
        try:
            load("fashion_mnits")
        except ValueError:
            pass
        assert "tensorflow" not in sys.modules, "TensorFlow was imported"
        import tensorflow
        assert "tensorflow" in sys.modules
        print("done")
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.strip().endswith("done")


def test_without_tfds_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError, match="'mnist'.*pip install tensorflow-datasets"):
        load("mnist")
