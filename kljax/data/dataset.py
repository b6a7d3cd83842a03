"""The one type the rest of kljax sees: named, checked, labelled inputs.

Letters: N examples in a dataset, n examples asked for, H W image sides, C channels.

A `Dataset` holds two columns, inputs and labels, an `InputSpec`, which says what stands
in the first (images, sentences, or several columns by name), and a `TargetSpec`, which
says what stands in the second: classes, or distributions, sequences, numbers. A column
is a NumPy array, or a `LazyColumn` that reads only the rows asked for, so that a data
set of ImageNet's size costs as much as the victims taken from it.

>>> import numpy as np
>>> ramp = np.linspace(0, 1, 3 * 4 * 4, dtype=np.float32).reshape(3, 4, 4, 1)
>>> toy = Dataset("toy", ramp, [0, 1, 0], 2, groups=None, licence="none needed")
>>> images, labels = toy.fetch(select(toy, n=2, seed=0))
>>> images.shape, labels.dtype
((2, 4, 4, 1), dtype('int32'))
"""

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy  # its modules are imported where they are first named

from kljax.core.array_checks import check_integers
from kljax.core.inputs import InputSpec
from kljax.core.targets import TargetSpec, classes_of
from kljax.core.trees import list_columns, map_columns
from kljax.core.types import PyTree
from kljax.data.checks import (
    check_batch,
    check_lengths,
    check_num_classes,
    check_whole,
    spec_of,
)


class LazyColumn(abc.ABC):
    """One column of a dataset that is read row by row.

    Attributes:
      shape: the shape the whole column would have, rows first.
    """

    shape: tuple[int, ...]

    @abc.abstractmethod
    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        """Reads the rows at ``indices`` [n], in that order."""

    def __len__(self) -> int:
        return self.shape[0]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Holds N labelled inputs and what a report has to say about them.

    Arrays are checked when the dataset is made (see `check_batch`) and kept as
    read-only views; a `LazyColumn` is checked row by row in `fetch`.

    Attributes:
      name: what error messages and reports call it.
      inputs: [N, H, W, C] float32 in [0, 1], images of any sides and number of
        channels, kept as such where 8-bit integers are given; or whatever
        `input_spec` says: of several inputs, a mapping of columns.
      labels: [N] int32 in [0, num_classes); or whatever `target_spec` says.
      num_classes: number of classes; None where `target_spec` says all.
      groups: [N] int32, the cluster each example belongs to in a bootstrap (all crops
        of a photograph are one), or None where every example is its own.
      licence: licence and source of the images, in words.
      untrained_only: True where the labels mean too little to train a network on.
      class_names: the names of the classes, or None.
      positions: [N] int64, where the examples are in the whole dataset that these are
        a part of (`kljax.data.subsets`), or None where they are all of it.
      input_spec: what stands in the column of inputs; images if None is given.
      target_spec: what stands in the column of labels; classes if None is given.

    Raises:
      ValueError: empty, unequal lengths, or anything `check_batch` refuses.
      TypeError: values of the wrong type.
    """

    name: str
    inputs: Any
    labels: Any
    num_classes: int | None
    groups: Any
    licence: str
    untrained_only: bool = False
    class_names: Sequence[str] | None = None
    positions: Any = None
    # None is what may be given, and is settled below.
    input_spec: InputSpec = None  # type: ignore[assignment]
    target_spec: TargetSpec = None  # type: ignore[assignment]

    def __post_init__(self):
        whole = f"dataset {self.name!r}"
        inputs, labels = self.inputs, self.labels
        if self.input_spec is None:
            object.__setattr__(self, "input_spec", spec_of(inputs, whole))
        if self.target_spec is None:
            check_num_classes(self.num_classes, whole)
            object.__setattr__(self, "target_spec", classes_of(self.num_classes))
        elif self.num_classes not in (None, self.target_spec.classes):
            raise ValueError(
                f"num_classes of {whole} is {self.num_classes}, and its targets are "
                f"{self.target_spec.kind} of shape {self.target_spec.shape}: give None"
            )
        object.__setattr__(self, "num_classes", self.target_spec.classes)
        if self.is_lazy:
            lengths = {len(column) for column in list_columns(inputs)}
            check_lengths(lengths.pop(), len(labels), whole)
            for length in lengths:
                check_lengths(length, len(labels), whole)
        else:
            inputs, labels = self._checked(inputs, labels, None)
        object.__setattr__(self, "inputs", map_columns(_kept, inputs))
        object.__setattr__(self, "labels", _kept(labels))
        if self.groups is not None:
            groups = check_integers(self.groups, "groups", whole)
            if len(groups) != len(self):
                raise ValueError(
                    f"{whole} has {len(self)} images and {len(groups)} groups; "
                    "give one group per image, or None"
                )
            object.__setattr__(self, "groups", _frozen(groups))
        if self.positions is not None:
            positions = check_integers(self.positions, "positions", whole, np.int64)
            if len(positions) != len(self):
                raise ValueError(
                    f"{whole} has {len(self)} images and {len(positions)} positions; "
                    "give one position per image, or None"
                )
            object.__setattr__(self, "positions", _frozen(positions))
        names = self.class_names
        if names is not None and len(names) != self.num_classes:
            raise ValueError(
                f"{whole} has {self.num_classes} classes and "
                f"{len(self.class_names)} class_names; give one name per class"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> PyTree:
        """Returns the shape of one input: (H, W, C) of an image.

        Of several inputs it is a mapping, as they are.
        """
        return map_columns(lambda column: tuple(column.shape[1:]), self.inputs)

    @property
    def is_lazy(self) -> bool:
        """Tells whether any column is read row by row."""
        columns = (*list_columns(self.inputs), self.labels)
        return any(isinstance(column, LazyColumn) for column in columns)

    def fetch(self, indices) -> tuple[np.ndarray, np.ndarray]:
        """Reads the examples at ``indices``, in that order.

        Args:
          indices: [n] integers in [0, N); n may be 0.

        Returns:
          inputs [n, H, W, C] float32 in [0, 1], or as `input_spec` has them, and
          labels [n] int32, or as `target_spec` has them.

        Raises:
          IndexError: an index outside the dataset.
          ValueError: a lazily read row that `check_batch` refuses.
        """
        indices = self._rows(indices)
        inputs = map_columns(lambda column: column[indices], self.inputs)
        labels = self.labels[indices]
        if not len(indices):  # nothing to check, but of the same types
            to = self.input_spec.dtype
            typed = map_columns(lambda x, to: x.astype(to), inputs, to)
            return typed, labels.astype(self.target_spec.dtype)
        return (
            self._checked(inputs, labels, indices) if self.is_lazy else (inputs, labels)
        )

    def _checked(
        self, inputs: PyTree, labels: np.ndarray, indices: np.ndarray | None
    ) -> tuple[PyTree, np.ndarray]:
        return check_batch(
            inputs,
            labels,
            self.num_classes,
            name=f"dataset {self.name!r}",
            indices=indices,
            input_spec=self.input_spec,
            target_spec=self.target_spec,
        )

    def groups_of(self, indices) -> np.ndarray:
        """Returns the bootstrap clusters [n] int32 of the examples at ``indices``."""
        indices = self._rows(indices)
        groups = indices if self.groups is None else self.groups[indices]
        return groups.astype(np.int32)

    def clusters_of(self, uploads: np.ndarray) -> np.ndarray:
        """Returns the bootstrap clusters of uploads that share a group of examples.

        Two uploads are one cluster where an example of one and an example of the other
        are of the same group, and so are two that a third links.

        Args:
          uploads: [N, B] indices of the examples of each.

        Returns:
          [N] int32, the least group of each cluster: of one example, its own group.
        """
        groups = np.stack([self.groups_of(upload) for upload in uploads])
        names, columns = np.unique(groups, return_inverse=True)
        count, (uploads_count, examples) = len(names), groups.shape
        rows = np.repeat(np.arange(uploads_count), examples)
        columns = uploads_count + columns.ravel()
        size = uploads_count + count
        links = scipy.sparse.coo_array(
            (np.ones(len(rows)), (rows, columns)), shape=(size, size)
        )
        _, cluster = scipy.sparse.csgraph.connected_components(links, directed=False)
        least = {}
        for name, member in zip(names, cluster[uploads_count:], strict=True):
            least.setdefault(member, name)  # names ascend
        return np.array([least[member] for member in cluster[:uploads_count]], np.int32)

    def positions_of(self, indices) -> np.ndarray:
        """Returns where the examples at ``indices`` are in the whole, [n] int64.

        Those are ``indices`` themselves, unless this is a part of a dataset.
        """
        indices = self._rows(indices)
        return indices if self.positions is None else self.positions[indices]

    def _rows(self, indices) -> np.ndarray:
        rows = check_integers(indices, "indices", f"dataset {self.name!r}", np.int64)
        outside = (rows < 0) | (rows >= len(self))
        if outside.any():
            raise IndexError(
                f"index {rows[outside][0]} is outside dataset {self.name!r}, which has "
                f"{len(self)} examples: indices run from 0 to {len(self) - 1}"
            )
        return rows


def select(dataset: Dataset, n: int, seed: int) -> np.ndarray:
    """Draws n examples without replacement.

    Guarantees: the draw depends on ``seed`` and on the length of the dataset alone;
    the first m of n examples are the m examples of a smaller draw.

    Args:
      n: number of examples, 1 to len(dataset).
      seed: a non-negative integer.

    Returns:
      indices [n] int64 into the dataset.
    """
    n, seed = check_whole(n, "n"), check_whole(seed, "seed")
    if n < 1:
        raise ValueError(
            f"asked for {n} victims of dataset {dataset.name!r}; ask for 1 or more"
        )
    if n > len(dataset):
        raise ValueError(
            f"asked for {n} victims, dataset {dataset.name!r} has {len(dataset)}; "
            f"ask for {len(dataset)} or fewer"
        )
    if seed < 0:
        raise ValueError(f"seed is {seed}; give 0 or more")
    # NumPy promises the raw stream of a bit generator across its versions, but not
    # what Generator.permutation makes of it.
    order = np.random.PCG64(seed).random_raw(len(dataset))
    return np.argsort(order, kind="stable")[:n]


def _kept(column: Any) -> Any:
    return column if isinstance(column, LazyColumn) else _frozen(np.asarray(column))


def _frozen(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view
