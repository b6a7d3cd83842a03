"""Batches and cohorts: by the stated rule, and by their numbers alone."""

import doctest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from test_dataset import Rows, ramp, toy

import kljax.data.batches
from kljax.data import cohort, fetch_batches, local_batches, local_steps, stacked

NUMBERS = {"seed": 0, "round": 0, "client": 0}


def draw(count, batch, epochs, steps=None, **numbers):
    """Batches of a client whose examples are 100, 101, ..."""
    return local_batches(
        100 + np.arange(count),
        batch=batch,
        epochs=epochs,
        steps=steps,
        **(NUMBERS | numbers),
    )


# ---- Cohorts -------------------------------------------------------------------------


def test_a_cohort_is_drawn_without_replacement():
    ids = cohort(3, 5, clients=50, size=10)
    assert ids.shape == (10,) and ids.dtype == np.int64
    assert np.all(np.diff(ids) > 0) and 0 <= ids[0] and ids[-1] < 50
    assert ids.tolist() == cohort(3, 5, 50, 10).tolist()


def test_everyone_comes_in_order():
    for round in range(3):
        assert cohort(0, round, 7, 7).tolist() == list(range(7))


def test_seed_and_round_decide():
    drawn = {tuple(cohort(s, r, 1000, 20)) for s in range(5) for r in range(5)}
    assert len(drawn) == 25


def test_no_client_and_no_pair_is_favoured():
    seats = np.zeros((2000, 6), int)
    for round in range(2000):
        seats[round, cohort(1, round, 6, 3)] = 1
    # Pairs of distinct clients, each 1/5 of the time together.
    together = (seats.T @ seats)[np.triu_indices(6, 1)]
    assert abs(seats.sum(axis=0) - 1000).max() < 5 * np.sqrt(2000 / 4)
    assert abs(together - 400).max() < 5 * np.sqrt(2000 * 0.2 * 0.8)
    # Rounds do not follow each other: neighbours share a client half of the time.
    again = (seats[1:] * seats[:-1]).mean()
    assert abs(again - 1 / 4) < 5 * np.sqrt(1 / 16 / 2000)


@pytest.mark.parametrize(
    "args, error, message",
    [
        ((0, 0, 3, 4), ValueError, "asked for 4 clients a round, and there are 3"),
        ((0, 0, 3, 0), ValueError, "size is 0"),
        ((0, 0, 0, 1), ValueError, "clients is 0"),
        ((-1, 0, 3, 1), ValueError, "seed is -1"),
        ((0, -1, 3, 1), ValueError, "a number of cohort is -1"),
        ((0, 0.5, 3, 1), TypeError, "a number of cohort is 0.5"),
        ((0, 0, 3, True), TypeError, "size is True"),
    ],
)
def test_a_cohort_refuses(args, error, message):
    with pytest.raises(error, match=message):
        cohort(*args)


# ---- Local batches -------------------------------------------------------------------

STEPS = [  # count, batch, epochs, steps -> T
    (10, 5, 1, None, 2),
    (11, 5, 1, None, 2),  # one left over
    (14, 5, 3, None, 6),  # four left over in each of three epochs
    (5, 5, 2, None, 2),
    (4, 5, 1, None, 1),  # fills its only batch
    (1, 64, 3, None, 3),
    (100, 10, 2, 7, 7),
    (100, 10, 2, 13, 13),
    (100, 10, 2, 99, 20),
]


@pytest.mark.parametrize("count, batch, epochs, steps, total", STEPS)
def test_steps_are_counted_as_they_are_drawn(count, batch, epochs, steps, total):
    assert local_steps(count, batch, epochs, steps=steps) == total
    drawn = draw(count, batch, epochs, steps)
    assert drawn.shape == (total, batch) and drawn.dtype == np.int64


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 3), st.integers(0, 9))
def test_an_epoch_gives_no_example_twice_unless_there_are_too_few(
    count, batch, epochs, seed
):
    drawn = draw(count, batch, epochs, seed=seed)
    for epoch in drawn.reshape(epochs, -1):
        times = np.bincount(epoch - 100, minlength=count)
        assert len(times) == count
        if count >= batch:
            assert times.max() == 1
            assert times.sum() == count - count % batch
        else:  # round and round: nobody is twice ahead
            assert times.sum() == batch
            assert times.max() - times.min() <= 1


def test_few_examples_are_gone_through_in_the_same_order_again():
    (only,) = draw(3, 8, 1)
    assert only[:3].tolist() == only[3:6].tolist()
    assert only[6:].tolist() == only[:2].tolist()


def test_every_number_decides():
    drawn = {
        tuple(draw(100, 10, 1, seed=s, round=r, client=c).ravel())
        for s in range(3)
        for r in range(3)
        for c in range(3)
    }
    assert len(drawn) == 27
    assert draw(100, 10, 1).tolist() == draw(100, 10, 1).tolist()
    first, second = draw(100, 10, 2).reshape(2, 100)
    assert first.tolist() != second.tolist()


def test_more_steps_and_epochs_begin_like_fewer():
    long = draw(100, 10, 3)
    assert draw(100, 10, 1).tolist() == long[:10].tolist()
    assert draw(100, 10, 3, steps=14).tolist() == long[:14].tolist()


def test_what_is_dropped_is_drawn_anew():
    # One of five is left over in each epoch, each as often.
    dropped = [sum(range(100, 105)) - draw(5, 4, 1, round=r).sum() for r in range(1000)]
    counts = np.bincount(np.array(dropped) - 100, minlength=5)
    assert counts.sum() == 1000
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"examples": []}, ValueError, "client 7 has no examples"),
        ({"examples": [0.5]}, TypeError, "examples of client 7 are float64"),
        ({"examples": [[1, 2]]}, ValueError, "examples of client 7 have shape"),
        ({"batch": 0}, ValueError, "batch is 0"),
        ({"epochs": 0}, ValueError, "epochs is 0"),
        ({"steps": 0}, ValueError, "steps is 0"),
        ({"batch": 2.0}, TypeError, "batch is 2.0"),
        ({"client": -1}, ValueError, "client is -1"),
        ({"round": -1}, ValueError, "a number of batches is -1"),
        ({"seed": None}, TypeError, "seed is None"),
    ],
)
def test_local_batches_refuse(changes, error, message):
    right = {"examples": [1, 2, 3], "batch": 2, "epochs": 1, "seed": 0, "round": 0}
    with pytest.raises(error, match=message):
        local_batches(**(right | {"client": 7} | changes))


def test_a_client_without_examples_has_no_steps():
    with pytest.raises(ValueError, match="count is 0"):
        local_steps(0, 5, 1)


# ---- Stacks --------------------------------------------------------------------------


def test_shorter_clients_are_padded_by_whole_steps():
    indices, valid = stacked([[[1, 2]], [[3, 4], [5, 6], [7, 8]]])
    assert indices.tolist() == [
        [[1, 2], [1, 2], [1, 2]],
        [[3, 4], [5, 6], [7, 8]],
    ]
    assert valid.tolist() == [[True, False, False], [True, True, True]]
    assert (indices.dtype, valid.dtype) == (np.int64, np.bool_)


def test_one_number_of_steps_serves_all_rounds():
    indices, valid = stacked([[[1, 2]], [[3, 4], [5, 6]]], steps=4)
    assert indices.shape == (2, 4, 2)
    assert valid.sum(axis=1).tolist() == [1, 2]
    assert indices[1, 2:].tolist() == [[5, 6], [5, 6]]


@pytest.mark.parametrize(
    "batches, steps, message",
    [
        ([], None, "no client to stack"),
        ([[[1, 2]], [[1, 2, 3]]], None, r"batches 1 have shape \(1, 3\)"),
        ([[[1, 2]], np.zeros((0, 2), int)], None, r"batches 1 have shape \(0, 2\)"),
        ([[1, 2]], None, r"batches 0 have shape \(2,\)"),
        ([[[1]], [[1], [2], [3]]], 2, "batches 1 have 3 steps, and steps is 2"),
        ([[[1]]], 0, "steps is 0"),
    ],
)
def test_stacked_refuses(batches, steps, message):
    with pytest.raises(ValueError, match=message):
        stacked(batches, steps)


# ---- Reading -------------------------------------------------------------------------


@pytest.mark.parametrize("column", [np.asarray, Rows])
@pytest.mark.parametrize("shape", [(2, 3, 2), (2, 2)])
def test_batches_are_read_in_place(column, shape):
    data = toy(6, inputs=column(ramp(6)), labels=column(np.arange(6) % 3))
    indices = np.random.default_rng(0).integers(0, 6, shape)
    images, labels = fetch_batches(data, indices)
    assert images.shape == (*shape, 3, 2, 1) and labels.shape == shape
    assert (images.dtype, labels.dtype) == (np.float32, np.int32)
    np.testing.assert_array_equal(images, ramp(6)[indices])
    np.testing.assert_array_equal(labels, indices % 3)


def test_an_example_is_read_once():
    data = toy(6, inputs=Rows(ramp(6)), labels=Rows(np.arange(6) % 3))
    indices, _ = stacked([[[4, 1]], [[4, 4], [0, 5]]])
    fetch_batches(data, indices)
    assert sorted(data.inputs.asked) == sorted(data.labels.asked) == [0, 1, 4, 5]


@pytest.mark.parametrize("column", [np.asarray, Rows])
def test_reading_outside_is_refused(column):
    data = toy(inputs=column(ramp()), labels=[0, 1, 2, 0])
    with pytest.raises(IndexError, match="index 4 .*'toy'"):
        fetch_batches(data, [[[0, 4]]])
    with pytest.raises(TypeError, match="indices.*float64"):
        fetch_batches(data, [[[0.0, 1.0]]])


def test_the_example_of_the_module_runs():
    results = doctest.testmod(kljax.data.batches)
    assert results.attempted > 0 and results.failed == 0
