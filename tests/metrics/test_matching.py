from itertools import permutations

import numpy as np
import pytest

from kljax.metrics import assign, choose, multiset_accuracy


def test_a_shuffled_noisy_batch_is_put_back_in_order():
    generator = np.random.default_rng(0)
    truths = generator.random((16, 8, 8, 3))
    shuffle = generator.permutation(16)
    guesses = truths[shuffle] + 0.05 * generator.standard_normal(truths.shape)
    order = assign(guesses, truths)
    np.testing.assert_array_equal(shuffle[order], np.arange(16))


def test_the_total_is_the_least_of_all_pairings():
    generator = np.random.default_rng(1)
    for _ in range(20):
        guesses, truths = generator.random((2, 5, 4))

        def total(order, guesses=guesses, truths=truths):
            return ((guesses[list(order)] - truths) ** 2).mean()

        best = min(total(order) for order in permutations(range(5)))
        assert total(assign(guesses, truths)) == pytest.approx(best, rel=1e-12)


def test_one_to_one_where_greedy_would_reuse_a_guess():
    truths = np.array([[0.5], [0.6]])
    guesses = np.array([[0.55], [0.0]])
    order = assign(guesses, truths)
    np.testing.assert_array_equal(order, [1, 0])  # costs .25 + .0025, not .0025 + .36


def test_guesses_are_clipped_before_they_are_compared():
    # Unclipped, the 9 counts for more than the second pixel and turns the pairing.
    truths = np.array([[1.0, 0.4], [0.9, 0.6]])
    guesses = np.array([[9.0, 0.6], [1.0, 0.4]])
    np.testing.assert_array_equal(assign(guesses, truths), [1, 0])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_broken_guess_takes_what_is_left(bad):
    truths = np.eye(4)
    guesses = truths[[2, 3, 0, 1]].copy()
    guesses[1, 0] = bad
    np.testing.assert_array_equal(assign(guesses, truths), [2, 3, 0, 1])
    # It does not count as black: the dark guess keeps the dark truth.
    truths = np.array([[0.0, 0.0], [1.0, 1.0]])
    guesses = np.array([[bad, 0.0], [0.4, 0.4]])
    np.testing.assert_array_equal(assign(guesses, truths), [1, 0])


@pytest.mark.parametrize("shapes", [((2, 3), (3, 3)), ((0, 3), (0, 3)), ((), ())])
def test_bad_shapes_are_named(shapes):
    with pytest.raises(ValueError, match="one shape"):
        assign(*(np.zeros(shape) for shape in shapes))


def test_labels_count_in_the_best_of_all_orders():
    generator = np.random.default_rng(3)
    for _ in range(50):
        guesses, truths = generator.integers(0, 3, (2, 5))
        best = max(np.mean(guesses[list(o)] == truths) for o in permutations(range(5)))
        assert multiset_accuracy(guesses, truths) == pytest.approx(best)


@pytest.mark.parametrize("shapes", [((2,), (3,)), ((0,), (0,)), ((2, 1), (2, 1))])
def test_labels_of_other_shapes_are_refused(shapes):
    with pytest.raises(ValueError, match=r"must have one shape \[B\]"):
        multiset_accuracy(*(np.zeros(shape, int) for shape in shapes))


def test_each_guess_has_a_truth_of_its_own_out_of_more():
    generator = np.random.default_rng(2)
    for _ in range(20):
        guesses, truths = generator.random((3, 4)), generator.random((5, 4))

        def total(chosen, guesses=guesses, truths=truths):
            return ((guesses - truths[list(chosen)]) ** 2).mean()

        best = min(total(chosen) for chosen in permutations(range(5), 3))
        assert total(choose(guesses, truths)) == pytest.approx(best, rel=1e-12)
    with pytest.raises(ValueError, match="3 guesses and 2 truths"):
        choose(guesses, truths[:2])
