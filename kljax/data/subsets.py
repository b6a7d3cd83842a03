"""Subsets: some of a dataset's examples, as a dataset of their own.

>>> ramp = np.linspace(0, 1, 3 * 4 * 4, dtype=np.float32).reshape(3, 4, 4, 1)
>>> toy = Dataset("toy", ramp, [0, 1, 2], 3, groups=None, licence="none needed")
>>> subset(toy, [2, 0]).labels.tolist()
[2, 0]
"""

import dataclasses

import numpy as np

from kljax.core.trees import map_columns
from kljax.data.dataset import Dataset, LazyColumn

MEMORY = 2**31  # bytes of images that are kept: 60,000 of 32 x 32 x 3 are a third


class _Rows(LazyColumn):
    """Some rows of a column."""

    def __init__(self, column, rows: np.ndarray):
        self._column, self._rows = column, rows
        self.shape = (len(rows), *column.shape[1:])

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        return self._column[self._rows[indices]]


def subset(dataset: Dataset, indices, *, memory: int = MEMORY) -> Dataset:
    """Takes some examples of a dataset.

    Inputs that are read lazily are read and decoded now and kept, where they take at
    most `memory` bytes: training goes through them again and again. Otherwise they
    stay lazy.

    Args:
      dataset: where to take them from.
      indices: [n] integers into it, 1 or more.
      memory: see above (speed only).

    Returns:
      A dataset of n examples, in the order of `indices`. It remembers where they are in
      the whole, also if it is a part of a part.

    Raises:
      IndexError: an index outside the dataset.
      ValueError: an example that `check_batch` refuses, if it is read now.
    """
    rows = np.asarray(indices, np.int64)
    groups = dataset.groups_of(rows)  # checks the indices
    if 4 * len(rows) * dataset.input_spec.entries <= memory:
        inputs, labels = dataset.fetch(rows)
    else:
        inputs = map_columns(lambda column: _Rows(column, rows), dataset.inputs)
        labels = _Rows(dataset.labels, rows)
    positions = dataset.positions_of(rows)
    return dataclasses.replace(
        dataset, inputs=inputs, labels=labels, groups=groups, positions=positions
    )
