"""What labelled inputs must be before anything attacks them.

Every refusal names the culprit: the batch, the row and the value, and what would do.
"""

import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kljax.core.inputs import InputSpec, images_of
from kljax.core.targets import TargetSpec, classes_of
from kljax.core.trees import list_columns, map_columns
from kljax.core.types import PyTree


def check_batch(
    inputs,
    labels,
    num_classes: int | None,
    *,
    name: str = "the batch",
    indices=None,
    input_spec: InputSpec | None = None,
    target_spec: TargetSpec | None = None,
) -> tuple[PyTree, np.ndarray]:
    """Checks labelled inputs and returns them with the types kljax works in.

    Args:
      inputs: [n, H, W, C] images in floating point in [0, 1] or 8-bit integers, none
        constant; or whatever `input_spec` says.
      labels: [n] integers in [0, num_classes); or whatever `target_spec` says.
      num_classes: number of classes; of no meaning beside `target_spec`.
      name: what error messages call the batch.
      indices: [n] what error messages call its rows; 0 to n - 1 if None.
      input_spec: what the inputs are; None for images of their own shape.
      target_spec: what the labels are; None for classes.

    Returns:
      inputs [n, H, W, C] float32 (or as `input_spec` has them), and labels [n] int32
      (or as `target_spec` has them).

    Raises:
      TypeError: images neither floating point nor 8-bit, or labels not integers.
      ValueError: with the index of the first culprit, for

        ==================  ====================================================
        empty               no image, or an image without pixels
        unequal lengths     as many labels as images are needed
        NaN                 also where other values are out of range
        outside [0, 1]      infinities too
        constant image      standard deviation 0: SSIM and floors mean nothing
        label out of range  negative, or num_classes and above
        ==================  ====================================================
    """
    if target_spec is None:
        check_num_classes(num_classes, name)
        target_spec = classes_of(num_classes)
    inputs = map_columns(np.asarray, inputs)
    columns = list_columns(inputs)
    counts = [len(column) if column.ndim else None for column in columns]
    if 0 in counts:
        raise ValueError(f"{name} is empty; give at least one example")
    count = counts[0] or 0
    input_spec = input_spec or spec_of(inputs, name)
    rows = np.arange(count) if indices is None else np.asarray(indices)
    inputs = input_spec.check(inputs, rows, name)
    labels = np.asarray(labels)
    check_lengths(count, len(labels) if labels.ndim else 0, name)
    return inputs, target_spec.check(labels, rows, name)


def spec_of(inputs: PyTree, name: str) -> InputSpec:
    """Gives the spec of inputs of which nothing is said: images.

    Raises:
      ValueError: for several columns.
    """
    if isinstance(inputs, Mapping):
        raise ValueError(
            f"{name} has several columns of inputs ({', '.join(inputs)}), which need "
            "input_spec=several_of(...): see kljax.core.inputs"
        )
    return images_of(np.shape(inputs)[1:])


def check_local_batches(
    images,
    labels,
    valid,
    num_classes: Callable[[PyTree], int],
    clients,
    input_spec: InputSpec | None = None,
    target_spec: TargetSpec | None = None,
) -> None:
    """Refuses what clients must not train on, as `check_batch` does what is attacked.

    NaN and constant images pass: rounds have a rule for clients that turn NaN, and
    only scores need contrast. Of inputs that are neither images nor tokens, and of
    targets that are no classes, shapes and types are looked at.

    Args:
      images: [n, T, B, H, W, C] floating point in [0, 1], or [n, T, B, L] tokens, or
        what else `input_spec` says.
      labels: [n, T, B] integers in [0, Kc), or other targets.
      valid: [n, T] bool; what padding holds does not matter.
      num_classes: ``(inputs of one example [1, ...]) -> Kc``, asked once the shapes
        are right, where `target_spec` does not say it.
      clients: [n] what error messages call the clients.
      input_spec: of the inputs; None for images, and for tokens.
      target_spec: of the targets; None for classes.

    Raises:
      TypeError: images not floating point, or labels not integers.
      ValueError: shapes that do not fit each other; an image outside [0, 1] or a label
        out of range, with its client and the value.
    """
    labels, valid = np.asarray(labels), np.asarray(valid)
    whose = f"the batches of client {clients[0]}"
    lead = (len(clients), *valid.shape[1:], *labels.shape[2:3])
    plain = input_spec is None or input_spec.kind in ("image", "text")
    classes = target_spec is None or target_spec.kind == "classes"
    if not plain:
        names = input_spec.parts or {None: input_spec}
        for name, spec in names.items():
            what = "inputs" if name is None else f"inputs {name!r}"
            column = input_spec.input_of(images, name)
            _check_form(column, spec.shape, spec.dtype, lead, f"{what} of {whose}")
    if not classes:
        stored, dtype = target_spec.stored, target_spec.dtype
        _check_form(labels, stored, dtype, lead, f"targets in {whose}")
    if plain:
        images = np.asarray(images)
        _check_values_type(images, whose)
    if classes and not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"labels in {whose} are {labels.dtype}; give integers")
    of_tokens = plain and images.dtype in TOKENS
    wrong_shape = plain and (
        images.ndim != (4 if of_tokens else 6) or labels.shape[:3] != images.shape[:3]
    )
    wrong_shape |= classes and labels.ndim != 3
    if wrong_shape or valid.shape != labels.shape[:2]:
        raise ValueError(
            f"images, labels and valid of {len(clients)} clients have shapes "
            f"{map_columns(np.shape, images)}, {labels.shape} and {valid.shape}; give "
            "[n, T, B, H, W, C] (or [n, T, B, L] tokens), [n, T, B] and [n, T]"
        )
    if classes:
        limit = (
            num_classes(map_columns(_one_of_zeros, images))
            if target_spec is None
            else target_spec.classes
        )
        _check_classes(labels, valid, limit, clients)
    if plain:
        _check_values(images, valid, clients)


# Of 8 bits are images that were not divided by 255.
TOKENS = (np.int32, np.int64)


def _one_of_zeros(column: Any) -> np.ndarray:
    """Makes an example [1, ...] of zeros like those of a column [n, T, B, ...]."""
    column = np.asarray(column)
    return np.zeros((1, *column.shape[3:]), column.dtype)


def _check_values_type(images: np.ndarray, whose: str) -> None:
    if not (images.dtype in TOKENS or np.issubdtype(images.dtype, np.floating)):
        raise TypeError(
            f"images in {whose} are {images.dtype}; give floating point in [0, 1] "
            "(divide 8-bit images by 255)"
        )


def _check_form(
    column: Any, shape: tuple[int, ...], dtype: Any, lead: tuple[int, ...], what: str
) -> None:
    """Refuses a column of batches [n, T, B, *shape] of another form."""
    column = np.asarray(column)
    if column.shape != (*lead, *shape):
        raise ValueError(
            f"{what} have shape {column.shape}; give [n, T, B] = {lead} of shape "
            f"{shape}"
        )
    if column.dtype != np.dtype(dtype):
        raise TypeError(f"{what} are {column.dtype}; give {np.dtype(dtype)}")


def _check_classes(
    labels: np.ndarray, valid: np.ndarray, classes: int, clients: Any
) -> None:
    wrong = valid[..., None] & ((labels < 0) | (labels >= classes))
    if wrong.any():
        n, t, b = np.argwhere(wrong)[0]
        raise ValueError(
            f"client {clients[n]} has label {labels[n, t, b]} (step {t}); labels must "
            f"lie in [0, {classes})"
        )


def _check_values(images: np.ndarray, valid: np.ndarray, clients: Any) -> None:
    # One quick look at all of it, padding included: of NaN neither is true. How many
    # tokens there are, the dataset knows.
    of_tokens = images.dtype in TOKENS
    if images.min() >= -of_tokens and (of_tokens or images.max() <= 1):
        return
    if of_tokens:
        raise ValueError(
            f"a token in the batches of client {clients[0]} is {images.min()}: they "
            "count from 0, and padding is -1"
        )
    outside = (images < 0) | (images > 1)
    wrong = valid & outside.any(axis=(2, 3, 4, 5))
    if wrong.any():
        n, t = np.argwhere(wrong)[0]
        value = images[n, t][outside[n, t]][0]
        raise ValueError(
            f"client {clients[n]} has an image with the value {value:g} (step {t}); "
            "values must lie in [0, 1]"
        )


def check_lengths(images: int, labels: int, name: str) -> None:
    """Refuses unequal numbers of images and labels, and none at all."""
    if images != labels:
        raise ValueError(
            f"{name} has {images} images and {labels} labels; give one label per image"
        )
    if images == 0:
        raise ValueError(f"{name} is empty; give at least one example")


def check_num_classes(num_classes, name: str) -> None:
    """Refuses what is no positive integer."""
    if check_whole(num_classes, f"num_classes of {name}") < 1:
        raise ValueError(f"num_classes of {name} is {num_classes}; give 1 or more")


def check_whole(value, name: str) -> int:
    """Returns one integer, or refuses what is none."""
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} is {value}; give an integer")
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} is {value!r}; give an integer") from None


def check_positive(value, name: str) -> float:
    """Returns one positive number, or refuses what is none."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} is {value!r}; give a number") from None
    if not (np.isfinite(number) and number > 0):
        raise ValueError(f"{name} is {number:g}; give a positive number")
    return number
