"""Subsets: kept in memory where they fit, read lazily where they do not."""

import numpy as np
import pytest

from kljax.data import Dataset, LazyColumn, subset


class Counted(LazyColumn):
    """A column that counts the rows it was asked for."""

    def __init__(self, values):
        self.values, self.read = values, 0
        self.shape = values.shape

    def __getitem__(self, indices):
        self.read += len(indices)
        return self.values[indices]


def dataset(lazy):
    images = np.random.default_rng(0).random((6, 4, 4, 1), np.float32)
    images = Counted(images) if lazy else images
    return Dataset("toy", images, [0, 1, 2, 0, 1, 2], 3, groups=None, licence="none")


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("memory", [0, 2**20])
def test_a_subset_holds_the_examples_asked_for(lazy, memory):
    whole = dataset(lazy)
    part = subset(whole, [5, 0, 3], memory=memory)
    assert (part.name, len(part), part.shape) == ("toy", 3, (4, 4, 1))
    images, labels = part.fetch([2, 0])
    expected = whole.fetch([3, 5])
    np.testing.assert_array_equal(images, expected[0])
    assert labels.tolist() == [0, 2]
    assert part.groups_of([0, 1, 2]).tolist() == [5, 0, 3]
    assert part.positions_of([2, 0]).tolist() == [3, 5]
    # A part of a part says where in the whole it is.
    assert subset(part, [2, 1]).positions_of([0, 1]).tolist() == [3, 0]
    assert whole.positions_of([4]).tolist() == [4]


def test_what_fits_is_read_once_and_what_does_not_when_it_is_wanted():
    whole = dataset(lazy=True)
    kept = subset(whole, [1, 2], memory=2 * 16 * 4)
    assert whole.inputs.read == 2
    kept.fetch([0, 1]), kept.fetch([0])
    assert whole.inputs.read == 2
    lazy = subset(whole, [1, 2], memory=2 * 16 * 4 - 1)
    assert whole.inputs.read == 2
    lazy.fetch([0, 1]), lazy.fetch([0])
    assert whole.inputs.read == 5


def test_an_index_outside_is_refused():
    with pytest.raises(IndexError, match="index 6 is outside dataset 'toy'"):
        subset(dataset(lazy=False), [6])
