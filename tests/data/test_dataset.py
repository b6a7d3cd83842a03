"""Dataset, select and check_batch, on arrays small enough to read."""

import doctest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import kljax.data.dataset
from kljax.data import Dataset, LazyColumn, check_batch, select


def ramp(n: int = 4, shape=(3, 2, 1)) -> np.ndarray:
    """n images of different values, none constant."""
    size = int(np.prod(shape))
    values = np.linspace(0, 0.5, size, dtype=np.float32)
    return (values + np.linspace(0, 0.5, n)[:, None]).reshape(n, *shape).astype("f4")


def toy(n: int = 4, **changes) -> Dataset:
    fields = dict(
        name="toy",
        inputs=ramp(n),
        labels=np.arange(n) % 3,
        num_classes=3,
        groups=None,
        licence="none needed",
    )
    return Dataset(**(fields | changes))


class Rows(LazyColumn):
    """An array read row by row, that remembers which rows were asked for."""

    def __init__(self, rows):
        self.rows, self.shape, self.asked = rows, rows.shape, []

    def __getitem__(self, indices):
        self.asked += list(indices)
        return self.rows[indices]


def with_value(index, value):
    images = ramp()
    images[index] = value
    return images


BAD_BATCHES = {  # what is wrong -> (images, labels, num_classes, error, message)
    "nan": (with_value((2, 0, 0, 0), np.nan), [0, 1, 2, 0], 3, ValueError, "image 2"),
    "all nan": (with_value(1, np.nan), [0, 1, 2, 0], 3, ValueError, "image 1.*NaN"),
    "infinite": (with_value((0, 1), np.inf), [0, 1, 2, 0], 3, ValueError, "image 0"),
    "above one": (with_value((3, 0), 1.5), [0, 1, 2, 0], 3, ValueError, "1.5.*lie in"),
    "negative": (
        with_value((1, 0), -0.1),
        [0, 1, 2, 0],
        3,
        ValueError,
        "image 1.*-0.1",
    ),
    "constant": (with_value(3, 0.1), [0, 1, 2, 0], 3, ValueError, "image 3.*constant"),
    "two constant": (ramp() * 0, [0, 1, 2, 0], 3, ValueError, "image 0.*3 more"),
    "label high": (ramp(), [0, 1, 3, 0], 3, ValueError, r"2 of.*label 3.*\[0, 3\)"),
    "label low": (ramp(), [0, -1, 2, 0], 3, ValueError, "example 1.*label -1"),
    "label huge": (ramp(), [2**32, 0, 0, 0], 3, ValueError, "labels.*fit int32"),
    "label real": (ramp(), [0.0, 1, 2, 0], 3, TypeError, "labels.*float64.*integers"),
    "label pairs": (ramp(), [[0, 1]] * 4, 3, ValueError, r"labels.*\(4, 2\)"),
    "few labels": (ramp(), [0, 1, 2], 3, ValueError, "4 images and 3 labels"),
    "no labels": (ramp(), [], 3, ValueError, "4 images and 0 labels"),
    "empty": (ramp()[:0], [], 3, ValueError, "empty"),
    "empty list": ([], [], 3, ValueError, "empty"),
    "no pixels": (np.ones((4, 0, 2, 1)), [0, 1, 2, 0], 3, ValueError, "no pixels"),
    "integers": (np.full((4, 3, 2, 1), 9), [0] * 4, 3, TypeError, "int64.*uint8"),
    "black bytes": (np.zeros((4, 3, 2, 1), "u1"), [0] * 4, 3, ValueError, "constant"),
    "one image": (ramp()[0], [0], 3, ValueError, r"\[n, H, W, C\]"),
    "no classes": (ramp(), [0] * 4, 0, ValueError, "num_classes.*1 or more"),
    "class list": (ramp(), [0] * 4, [1], TypeError, "num_classes.*integer"),
}


@pytest.mark.parametrize("bad", BAD_BATCHES)
def test_check_batch_names_the_culprit(bad):
    images, labels, num_classes, error, message = BAD_BATCHES[bad]
    with pytest.raises(error, match=message) as caught:
        check_batch(images, labels, num_classes)
    assert "the batch" in str(caught.value)


@pytest.mark.parametrize("bad", BAD_BATCHES)
def test_a_dataset_refuses_what_check_batch_refuses_under_its_name(bad):
    images, labels, num_classes, error, message = BAD_BATCHES[bad]
    with pytest.raises(error, match=message) as caught:
        toy(inputs=images, labels=labels, num_classes=num_classes)
    assert "'toy'" in str(caught.value)


def test_check_batch_returns_the_types_of_kljax():
    images, labels = check_batch(ramp().astype(np.float64), [0, 1, 2, 0], 3)
    assert (images.dtype, labels.dtype) == (np.float32, np.int32)
    np.testing.assert_array_equal(images, ramp())


def test_images_of_8_bits_are_divided_by_255():
    given = np.arange(2 * 3 * 4 * 1, dtype=np.uint8).reshape(2, 3, 4, 1) + 232
    images, _ = check_batch(given, [0, 1], 3)
    assert images.dtype == np.float32 and images.max() == 1
    np.testing.assert_allclose(images * 255, given, atol=1e-4)
    whole, lazy = (
        toy(2, inputs=column, labels=[0, 1]).fetch([1, 0])[0]
        for column in (given, Rows(given))
    )
    np.testing.assert_array_equal(whole, images[::-1])
    np.testing.assert_array_equal(lazy, images[::-1])
    assert toy(2, inputs=Rows(given), labels=[0, 1]).fetch([])[0].dtype == np.float32


def test_the_ends_of_the_range_and_barely_varying_images_are_allowed():
    images = np.zeros((2, 2, 2, 1), np.float32)
    images[0, 0, 0] = 1
    images[1, 0, 0] = np.float32(1e-6)
    check_batch(images, [0, 0], 1)


@pytest.mark.parametrize(
    "changes, error, message",
    [
        (dict(groups=[0, 1]), ValueError, "4 images and 2 groups"),
        (dict(groups=[0.5] * 4), TypeError, "groups.*integers"),
        (dict(class_names=("a",)), ValueError, "3 classes and 1 class_names"),
        (dict(inputs=Rows(ramp()), labels=[0]), ValueError, "4 images and 1 labels"),
        (dict(inputs=Rows(ramp(0)), labels=[]), ValueError, "empty"),
    ],
)
def test_dataset_fields_must_fit_together(changes, error, message):
    with pytest.raises(error, match=message):
        toy(**changes)


def test_fetch_keeps_order_and_repeats():
    images, labels = toy().fetch([3, 0, 3])
    np.testing.assert_array_equal(images, ramp()[[3, 0, 3]])
    assert labels.tolist() == [0, 0, 0]
    assert (images.dtype, labels.dtype) == (np.float32, np.int32)


@pytest.mark.parametrize("index", [-1, 4])
def test_fetch_refuses_an_index_outside(index):
    with pytest.raises(IndexError, match=f"index {index} .*'toy'.*4 examples.*0 to 3"):
        toy().fetch([0, index])


def test_fetch_refuses_indices_that_are_no_integers():
    with pytest.raises(TypeError, match="indices.*float64"):
        toy().fetch([0.0])


def test_what_was_fetched_is_free_and_what_is_held_is_not():
    data = toy()
    images, _ = data.fetch([0])
    images[:] = 0
    np.testing.assert_array_equal(data.inputs, ramp())
    for held in (data.inputs, data.labels):
        with pytest.raises(ValueError, match="read-only"):
            held[0] = 0


def test_groups_default_to_one_each():
    assert toy().groups_of([2, 0]).tolist() == [2, 0]
    grouped = toy(groups=[5, 5, 6, 6]).groups_of([3, 0])
    assert grouped.tolist() == [6, 5]
    assert grouped.dtype == np.int32


@given(st.lists(st.lists(st.integers(0, 11), min_size=2, max_size=2), min_size=1))
@settings(max_examples=50, deadline=None)
def test_uploads_that_share_a_group_are_one_cluster(uploads):
    groups = [0, 0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    dataset = toy(12, groups=groups)
    # The slow form: merge whatever shares a group until nothing does.
    members = [{groups[i] for i in upload} for upload in uploads]
    for _ in members:
        members = [
            set().union(*(other for other in members if other & mine))
            for mine in members
        ]
    clusters = dataset.clusters_of(np.array(uploads))
    assert clusters.tolist() == [min(member) for member in members]


def test_an_upload_is_linked_by_any_of_its_examples():
    dataset = toy(groups=[5, 5, 6, 6])
    # By first examples alone these were two clusters.
    assert dataset.clusters_of(np.array([[0, 2], [3, 2]])).tolist() == [5, 5]
    assert dataset.clusters_of(np.array([[3], [0]])).tolist() == [6, 5]


def test_a_lazy_dataset_reads_only_the_rows_asked_for():
    rows, labels = Rows(ramp()), Rows(np.arange(4) % 3)
    data = toy(inputs=rows, labels=labels)
    assert (len(data), data.shape) == (4, (3, 2, 1))
    assert rows.asked == labels.asked == []
    images, fetched = data.fetch([2, 1])
    assert rows.asked == labels.asked == [2, 1]
    np.testing.assert_array_equal(images, ramp()[[2, 1]])
    assert fetched.tolist() == [2, 1]


@pytest.mark.parametrize("column", [np.asarray, Rows])
def test_fetching_nothing_gives_nothing(column):
    data = toy(inputs=column(ramp()), labels=column(np.arange(4) % 3))
    images, labels = data.fetch([])
    assert (images.shape, labels.shape) == ((0, 3, 2, 1), (0,))
    some = data.fetch([1])
    assert [images.dtype, labels.dtype] == [column.dtype for column in some]
    assert (images.dtype, labels.dtype) == (np.float32, np.int32)


def test_lazy_images_may_have_plain_labels():
    _, labels = toy(inputs=Rows(ramp()), labels=[0, 1, 2, 0]).fetch([2, 1])
    assert labels.tolist() == [2, 1]


def test_a_lazy_dataset_names_the_row_it_refuses():
    data = toy(inputs=Rows(with_value(3, 0.1)), labels=Rows(np.zeros(4, int)))
    data.fetch([0, 1, 2])
    with pytest.raises(ValueError, match="image 3 of dataset 'toy' is constant"):
        data.fetch([0, 3])


@settings(deadline=None)
@given(st.data(), st.integers(1, 60), st.integers(0, 2**64))
def test_select_draws_without_replacement_and_prefixes_agree(draw, size, seed):
    data = toy(size)
    n = draw.draw(st.integers(1, size))
    chosen = select(data, n, seed)
    assert chosen.shape == (n,)
    assert len(set(chosen.tolist())) == n
    assert set(chosen.tolist()) <= set(range(size))
    np.testing.assert_array_equal(chosen, select(data, n, seed))
    np.testing.assert_array_equal(chosen, select(data, size, seed)[:n])


def test_select_draws_what_it_always_drew():
    # Victims of published runs are found again by their seed alone.
    assert select(toy(10), 10, 0).tolist() == [3, 2, 1, 8, 6, 0, 7, 4, 5, 9]


def test_select_depends_on_the_seed_and_favours_no_example():
    data = toy(10)
    firsts = [int(select(data, 1, seed)[0]) for seed in range(1000)]
    counts = np.bincount(firsts, minlength=10)
    # Binomial(1000, .1): standard deviation 9.5; five of them on either side.
    assert counts.min() > 52 and counts.max() < 148


@pytest.mark.parametrize(
    "n, seed, error, message",
    [
        (5, 0, ValueError, "asked for 5 victims, dataset 'toy' has 4"),
        (0, 0, ValueError, "asked for 0 victims.*'toy'.*1 or more"),
        (-2, 0, ValueError, "asked for -2 victims"),
        (2, -1, ValueError, "seed is -1"),
        (2.0, 0, TypeError, "n is 2.0; give an integer"),
        (True, 0, TypeError, "n is True"),
        (2, "0", TypeError, "seed is '0'"),
    ],
)
def test_select_refuses(n, seed, error, message):
    with pytest.raises(error, match=message):
        select(toy(), n, seed)


def test_the_example_of_the_module_runs():
    results = doctest.testmod(kljax.data.dataset)
    assert results.attempted > 0 and results.failed == 0
