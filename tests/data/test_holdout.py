"""Holdouts: what is tested on was not trained on."""

import numpy as np
import pytest
from scipy import stats
from test_dataset import ramp, toy
from test_partition import chi_square

from kljax.data import holdout, load


def test_a_holdout_parts_digits():
    data = load("digits", shape=(8, 8, 1))
    train, test = holdout(data, 0, 0.2)
    assert sorted([*train, *test]) == list(range(len(data)))
    assert len(test) == 359  # a fifth of 1,797
    assert train.dtype == test.dtype == np.int64
    assert np.all(np.diff(train) > 0) and np.all(np.diff(test) > 0)
    # Shuffled: not the writers of the last pages, and all ten digits.
    assert chi_square((train, test), data.labels) > 1e-3
    assert stats.kstest(test / len(data), "uniform").pvalue > 1e-3
    assert holdout(data, 0, 0.2)[1].tolist() == test.tolist()
    assert holdout(data, 1, 0.2)[1].tolist() != test.tolist()
    assert set(holdout(data, 0, 0.1)[1]) < set(test)


def test_a_holdout_keeps_groups_together():
    groups = np.repeat(np.arange(6), 5)
    data = toy(30, groups=groups)
    for seed in range(10):
        train, test = holdout(data, seed, 0.3)
        assert not set(groups[train]) & set(groups[test])
        assert len(test) == 10  # two groups: 9 would be nearest


def test_a_holdout_leaves_something_on_either_side():
    data = toy(4)
    assert [len(part) for part in holdout(data, 0, 0.001)] == [3, 1]
    assert [len(part) for part in holdout(data, 0, 0.999)] == [1, 3]


@pytest.mark.parametrize(
    "share, changes, error, message",
    [
        (0, {}, ValueError, "share is 0"),
        (1, {}, ValueError, r"share is 1; give a number in \(0, 1\)"),
        (None, {}, TypeError, "share is None"),
        (0.5, {"groups": [1] * 4}, ValueError, "'toy' has a single group"),
        (0.5, {"inputs": ramp(1), "labels": [0]}, ValueError, "'toy'.*single group"),
    ],
)
def test_a_holdout_refuses(share, changes, error, message):
    with pytest.raises(error, match=message):
        holdout(toy(**changes), 0, share)
