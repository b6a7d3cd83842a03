"""Holdouts: examples of a dataset without splits that are kept for testing."""

import numpy as np

from kljax.data.checks import check_positive
from kljax.data.dataset import Dataset
from kljax.data.draws import shuffled


def holdout(dataset: Dataset, seed: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Parts a dataset without splits into examples to train on and to test on.

    Examples of one group stay together, so that no test example has a twin that was
    trained on. Labels are not looked at.

    Guarantees: depends on `seed`, `share` and the groups alone; a smaller share gives
    test examples that a larger one gives, too.

    Args:
      seed: a non-negative integer.
      share: of the examples to test on, in (0, 1); met as closely as whole groups
        allow, with at least one group on either side.

    Returns:
      indices to train on and to test on, [n] int64 each, ascending.

    Raises:
      ValueError: a share outside (0, 1), or a dataset of one group.
    """
    share = check_positive(share, "share")
    if share >= 1:
        raise ValueError(f"share is {share:g}; give a number in (0, 1)")
    groups = dataset.groups_of(np.arange(len(dataset)))
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if len(sizes) < 2:
        raise ValueError(
            f"dataset {dataset.name!r} has a single group of examples, which cannot be "
            "parted; give at least two"
        )
    order = shuffled(len(sizes), seed, "holdout")
    tested = np.cumsum(sizes[order])[:-1]
    count = 1 + int(np.argmin(np.abs(tested - share * len(dataset))))
    test = np.isin(group, order[:count])
    return np.flatnonzero(~test), np.flatnonzero(test)
