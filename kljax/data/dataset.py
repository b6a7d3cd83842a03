"""The one type the rest of kljax sees: named, checked, labelled inputs.

Letters: N examples in a dataset, n examples asked for, H W image sides, C channels.

A `Dataset` holds two columns, images and labels, and an `InputSpec`, which says what
stands in the first: images, or sentences. A column is a NumPy array, or a
`LazyColumn` that reads only the rows asked for, so that a data set of ImageNet's size
costs as much as the victims taken from it.

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
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from kljax.core.inputs import InputSpec, images_of
from kljax.data.checks import (
    check_batch,
    check_integers,
    check_lengths,
    check_num_classes,
    check_whole,
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
      images: [N, H, W, C] float32 in [0, 1], of any sides and number of channels,
        kept as such where 8-bit integers are given; or whatever `inputs` says.
      labels: [N] int32 in [0, num_classes).
      num_classes: number of classes.
      groups: [N] int32, the cluster each example belongs to in a bootstrap (all crops
        of a photograph are one), or None where every example is its own.
      licence: licence and source of the images, in words.
      untrained_only: True where the labels mean too little to train a network on.
      class_names: the names of the classes, or None.
      positions: [N] int64, where the examples are in the whole dataset that these are
        a part of (`kljax.data.subsets`), or None where they are all of it.
      inputs: what stands in the column of images; images if None is given.

    Raises:
      ValueError: empty, unequal lengths, or anything `check_batch` refuses.
      TypeError: values of the wrong type.
    """

    name: str
    images: Any
    labels: Any
    num_classes: int
    groups: Any
    licence: str
    untrained_only: bool = False
    class_names: Sequence[str] | None = None
    positions: Any = None
    inputs: InputSpec | None = None

    def __post_init__(self):
        whole = f"dataset {self.name!r}"
        images, labels = self.images, self.labels
        if self.inputs is None:
            object.__setattr__(self, "inputs", images_of(np.shape(images)[1:]))
        if isinstance(images, LazyColumn) or isinstance(labels, LazyColumn):
            check_num_classes(self.num_classes, whole)
            check_lengths(len(images), len(labels), whole)
        else:
            images, labels = check_batch(
                images, labels, self.num_classes, name=whole, inputs=self.inputs
            )
        for field, column in (("images", images), ("labels", labels)):
            if not isinstance(column, LazyColumn):
                column = _frozen(np.asarray(column))
            object.__setattr__(self, field, column)
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
        if self.class_names is not None and len(self.class_names) != self.num_classes:
            raise ValueError(
                f"{whole} has {self.num_classes} classes and "
                f"{len(self.class_names)} class_names; give one name per class"
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def shape(self) -> tuple[int, ...]:
        """Returns the shape of one input: (H, W, C) of an image."""
        return tuple(self.images.shape[1:])

    def fetch(self, indices) -> tuple[np.ndarray, np.ndarray]:
        """Reads the examples at ``indices``, in that order.

        Args:
          indices: [n] integers in [0, N); n may be 0.

        Returns:
          images [n, H, W, C] float32 in [0, 1], or as `inputs` has them, and labels
          [n] int32.

        Raises:
          IndexError: an index outside the dataset.
          ValueError: a lazily read row that `check_batch` refuses.
        """
        indices = self._rows(indices)
        images, labels = self.images[indices], self.labels[indices]
        lazy = isinstance(self.images, LazyColumn) or isinstance(
            self.labels, LazyColumn
        )
        if not len(indices):  # nothing to check, but of the same types
            return images.astype(self.inputs.dtype), labels.astype(np.int32)
        if lazy:
            images, labels = check_batch(
                images,
                labels,
                self.num_classes,
                name=f"dataset {self.name!r}",
                indices=indices,
                inputs=self.inputs,
            )
        return images, labels

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
        links = coo_array((np.ones(len(rows)), (rows, columns)), shape=(size, size))
        _, cluster = connected_components(links, directed=False)
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


def _frozen(array: np.ndarray) -> np.ndarray:
    view = array.view()
    view.flags.writeable = False
    return view
