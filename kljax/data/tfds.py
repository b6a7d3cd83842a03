"""Any image classification set of TensorFlow Datasets, read without TensorFlow.

TFDS names its sets and knows their features; ``array_record`` files give any example
by its number. So a dataset here is two lazy columns over one file: opening one reads
no image, and fetching n victims reads n records, however many there are.

Preparing a set (downloading it, writing the files) is the business of TFDS, or of
`kljax.data.prepare` for the sets it knows. Loading never downloads.
"""

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np

from kljax.data.dataset import Dataset, LazyColumn
from kljax.data.prepare import PREPARERS
from kljax.data.resizing import check_shape, resize

NAME = re.compile(r"\w+(/[\w.\-]+)?(:[\d.*]+)?")  # dataset[/config][:version]
RANDOM_ACCESS = "array_record"


class TfdsImages(LazyColumn):
    """Reads, decodes and resizes the images asked for."""

    def __init__(self, source, feature: str, shape: tuple[int, int, int]):
        self._source, self._feature = source, feature
        self.shape = (len(source), *shape)

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        images = np.empty((len(indices), *self.shape[1:]), np.float32)
        for row, index in enumerate(indices):
            pixels = self._source[int(index)][self._feature]
            try:
                images[row] = resize(pixels, self.shape[1:])
            except ValueError as error:
                raise ValueError(f"image {index}: {error}") from error
        return images


class TfdsLabels(LazyColumn):
    """Reads the labels asked for, leaving the images beside them encoded."""

    def __init__(self, source, feature: str):
        self._source, self._feature = source, feature
        self.shape = (len(source),)

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        labels = [self._source[int(index)][self._feature] for index in indices]
        return np.asarray(labels, np.int64)


def load_tfds(
    name: str,
    *,
    shape: tuple[int, int, int] = (32, 32, 3),
    split: str | None = None,
    data_dir: str | None = None,
) -> Dataset:
    """Opens a prepared TFDS set.

    Images are cropped at the centre to the aspect ratio of ``shape`` and resized to
    it; grey images are repeated over three channels, and colour becomes luma where
    C = 1.

    Args:
      name: TFDS name, ``dataset[/config][:version]``.
      shape: (H, W, C) of the images.
      split: a TFDS split, slices included (``"test"``, ``"train[:100]"``); None is
        ``"train"``, the images a client would hold.
      data_dir: where TFDS keeps prepared sets; None is TFDS's own default.

    Raises:
      LookupError: a name TFDS does not know.
      FileNotFoundError: a set not prepared for random access under ``data_dir``.
      ValueError: no such split, or a set without one image and one class label.
      ImportError: TFDS is not installed.
    """
    shape = check_shape(shape)
    tfds = _import_tfds(name)
    builder = _builder(tfds, name, data_dir)
    image, label = _features(tfds, builder.info, name)
    _check_prepared(builder, name, data_dir)
    split = "train" if split is None else split
    info = builder.info
    return Dataset(
        name=name,
        inputs=TfdsImages(_source(tfds, builder, name, split, image), image, shape),
        labels=TfdsLabels(_source(tfds, builder, name, split, label), label),
        num_classes=info.features[label].num_classes,
        groups=None,
        licence=info.redistribution_info.license or f"see {info.homepage}",
        class_names=_class_names(info.features[label]),
    )


def stamp(name: str, data_dir: str | None = None) -> tuple[tuple[str, int, int], ...]:
    """Says which files a set would be read from: (path, mtime [ns], size) of each.

    Two sets of one name are the same where their stamps are. A set that is not there,
    and one that comes with a package, has none.
    """
    try:
        folder = Path(_builder(_import_tfds(name), name, data_dir).data_dir).resolve()
    except (LookupError, ImportError):
        return ()
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    seen = ((str(path), path.stat()) for path in files)
    return tuple((path, stat.st_mtime_ns, stat.st_size) for path, stat in seen)


def list_tfds() -> list[str]:
    """Lists the sets TFDS has code for; empty where TFDS is not installed."""
    try:
        tfds = _import_tfds("")
    except ImportError:
        return []
    # Community sets are looked up on a remote host, and fail without TensorFlow.
    return tfds.list_builders(with_community_datasets=False)


def _import_tfds(name: str) -> Any:
    try:
        import array_record  # noqa: F401
        import tensorflow_datasets
    except ImportError as error:
        raise ImportError(
            f"dataset {name!r} is read with TensorFlow Datasets, which is not fully "
            f"installed ({error}); pip install tensorflow-datasets array-record"
        ) from error
    return tensorflow_datasets


def _builder(tfds, name: str, data_dir: str | None):
    # A colon with anything but a version would send TFDS to a remote host.
    if not NAME.fullmatch(name):
        raise LookupError(f"{name!r} is no TFDS name: dataset[/config][:version]")
    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        raise LookupError(f"TFDS has no dataset {name!r}") from error


def _features(tfds, info, name: str) -> tuple[str, str]:
    """Finds which feature is the image, and which the class label."""
    features, wanted = info.features, info.supervised_keys
    named = (
        wanted is not None and len(wanted) == 2 and all(w in features for w in wanted)
    )
    image, label = wanted if named else ("image", "label")
    kinds = {image: tfds.features.Image, label: tfds.features.ClassLabel}
    for feature, kind in kinds.items():
        if feature not in features or not isinstance(features[feature], kind):
            raise ValueError(
                f"dataset {name!r} has no {kind.__name__} feature {feature!r}; its "
                f"features are {', '.join(sorted(features))}"
            )
    return image, label


def _check_prepared(builder, name: str, data_dir: str | None) -> None:
    place = builder.data_dir_root
    there = "" if data_dir is None else shlex.quote(str(data_dir))
    base = re.split("[/:]", name)[0]
    if base in PREPARERS:
        option = f" --data-dir {there}" if there else ""
        command = f"kljax data prepare {base} --from DIR{option}"
    else:
        option = f" --data_dir={there}" if there else ""
        command = (
            f"tfds build {name} --file_format={RANDOM_ACCESS}{option} "
            "(this step alone needs TensorFlow)"
        )
    if not builder.is_prepared():
        raise FileNotFoundError(
            f"dataset {name!r} is not prepared under {place}; prepare it with\n"
            f"  {command}"
        )
    formats = {form.value for form in builder.info.available_file_formats()}
    if RANDOM_ACCESS not in formats:
        raise FileNotFoundError(
            f"dataset {name!r} is prepared under {place} as "
            f"{', '.join(sorted(formats))}, which has no random access; delete it and "
            f"prepare it with\n  {command}"
        )


def _source(tfds, builder, name: str, split: str, feature: str):
    """Opens a split so that of each record only one feature is decoded."""
    decoders = {
        other: tfds.decode.SkipDecoding()
        for other in builder.info.features
        if other != feature
    }
    try:
        return builder.as_data_source(
            split=split, decoders=decoders, file_format=RANDOM_ACCESS
        )
    except ValueError as error:
        raise ValueError(
            f"dataset {name!r} has no split {split!r}; its splits are "
            f"{', '.join(sorted(builder.info.splits))} and slices such as 'train[:100]'"
        ) from error


def _class_names(feature) -> tuple[str, ...] | None:
    # TFDS invents the names "0", "1", ... where a set gives none.
    return tuple(feature.names) if feature.names else None
