"""Scores of sentences, and what nobody has to steal."""

import doctest
import itertools
from collections import Counter

import numpy as np
import pytest

import kljax.metrics.text
from kljax.core.inputs import InputSpec, images_of
from kljax.data.sentences import sentences_of
from kljax.metrics import assign
from kljax.metrics.kinds import KINDS, Kind, find_kind
from kljax.metrics.text import (
    SENTENCE_FLOORS,
    SentenceReference,
    exact_match,
    floor_sentences,
    rouge,
    token_accuracy,
)

REFERENCE = SentenceReference(
    [[1, 2, 3], [1, 2, 4], [5, 2, 4], [5, 0, 4]], [0, 0, 1, 1], [10, 11, 12, 13]
)


def floors(tokens=(5, 2, 3), label=1, index=99, seed=0):
    made = floor_sentences(np.array(tokens), label, index, REFERENCE, seed)
    return {name: found.tolist() for name, found in made.items()}


def test_doctests():
    assert doctest.testmod(kljax.metrics.text).failed == 0


def test_accuracy_counts_tokens_in_their_place():
    truths = [[1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4]]
    guesses = [[1, 2, 3, 4], [2, 1, 3, 4], [4, 3, 2, 1]]
    np.testing.assert_array_equal(token_accuracy(guesses, truths), [1, 0.5, 0])
    np.testing.assert_array_equal(exact_match(guesses, truths), [True, False, False])
    assert token_accuracy([[1]], [[1]]).tolist() == [1]
    for guesses, truths in (
        ([[1, 2]], [[1, 2, 3]]),
        ([1, 2], [1, 2]),
        ([[]], [[]]),
        ([[[1]]], [[[1]]]),
    ):
        for score in (token_accuracy, exact_match):
            with pytest.raises(ValueError, match=r"must have one shape \[n, T\] with"):
                score(guesses, truths)


def subsequence(a, b):
    """Measures the longest common subsequence by trying everything."""
    if not a or not b:
        return 0
    if a[-1] == b[-1]:
        return 1 + subsequence(a[:-1], b[:-1])
    return max(subsequence(a[:-1], b), subsequence(a, b[:-1]))


@pytest.mark.parametrize(
    "guess",
    ("The cat sat on the mat.", "the mat sat on the cat", "a dog", "cat", "the the"),
)
def test_rouge_is_the_f_measure_of_its_definition(guess):
    truth = "the cat sat on the mat"
    words = [text.lower().replace(".", "").split() for text in (guess, truth)]
    pairs = [[*zip(w, w[1:], strict=False)] for w in words]

    def f_measure(common, a, b):
        return 2 * common / (len(a) + len(b)) if common else 0.0

    expected = {
        "rouge_1": f_measure((Counter(words[0]) & Counter(words[1])).total(), *words),
        "rouge_2": f_measure((Counter(pairs[0]) & Counter(pairs[1])).total(), *pairs),
        "rouge_l": f_measure(subsequence(*words), *words),
    }
    assert rouge(guess, truth) == pytest.approx(expected)


def test_floors_are_made_of_the_reference_alone():
    made = floors()
    assert list(made) == list(SENTENCE_FLOORS)
    assert made["commonest"] == [2, 2, 2]  # 4 is as common, the lower is taken
    assert made["by_place"] == [1, 2, 4]  # 1 and 5 are as common
    assert made["class_by_place"] == [5, 0, 4]
    assert made["same_class"] in ([5, 2, 4], [5, 0, 4])
    assert made["bigrams"] == [1, 2, 4]
    assert sorted(made["own_tokens"]) == [2, 3, 5]


@pytest.mark.parametrize(
    ("sentences", "written"),
    (
        # 1 and 2 begin as often; 2 and 3 follow 1 as often; 3 follows 2 thrice.
        ([[1, 2, 3], [1, 3, 2], [2, 3, 1], [2, 3, 5]], [1, 2, 3]),
        # 9 follows 1 thrice, and nothing follows 9: then the commonest of all.
        ([[1, 2, 3], [1, 4, 5], [6, 1, 9], [7, 1, 9], [8, 1, 9]], [1, 9, 1]),
        ([[4], [4], [2]], [4]),
    ),
)
def test_a_bigram_goes_on_with_what_follows_most(sentences, written):
    count, length = np.shape(sentences)
    reference = SentenceReference(sentences, [0] * count, range(count))
    made = floor_sentences([7] * length, 0, 99, reference, 0)
    assert made["bigrams"].tolist() == written


def test_a_label_that_nobody_else_has_leaves_out_what_needs_one():
    left = set(SENTENCE_FLOORS) - {"class_by_place", "same_class"}
    assert set(floors(label=7)) == left


def test_the_victim_is_no_part_of_what_represents_it():
    made = floors(tokens=(1, 2, 3), label=0, index=10)
    assert made["class_by_place"] == made["same_class"] == [1, 2, 4]
    assert made["by_place"] == [5, 2, 4]
    alone = SentenceReference([[1, 2, 3]], [0], [10])
    assert list(floor_sentences([1, 2, 3], 0, 10, alone, 0)) == ["own_tokens"]


def test_floors_depend_on_the_seed_and_the_victim_alone():
    assert floors() == floors()
    shuffles = {tuple(floors(seed=seed)["own_tokens"]) for seed in range(20)}
    assert len(shuffles) > 2
    shuffles = {tuple(floors(index=index)["own_tokens"]) for index in range(90, 99)}
    assert len(shuffles) > 2
    picked = {tuple(floors(seed=seed)["same_class"]) for seed in range(20)}
    assert picked == {(5, 2, 4), (5, 0, 4)}


@pytest.mark.parametrize(
    ("victim", "message"),
    (
        ({"tokens": (1, 2)}, r"victim has shape \(2,\), .* have \(3,\)"),
        ({"tokens": (9, 2, 3), "index": 10}, "another sentence under index 10"),
    ),
)
def test_a_victim_of_another_dataset_is_refused(victim, message):
    with pytest.raises(ValueError, match=message):
        floors(**victim)


@pytest.mark.parametrize(
    ("reference", "message"),
    (
        (([], [], []), r"shape \(0,\); they must be \[n, T\]"),
        (([1, 2], [0, 1], [0, 1]), r"shape \(2,\); they must be \[n, T\]"),
        (([[[1]]], [0], [0]), r"shape \(1, 1, 1\); they must be \[n, T\]"),
        (([[1]], [0, 1], [0]), "1 sentences need as many labels and indices"),
        (([[1]], [0], [0, 1]), "1 sentences need as many labels and indices"),
        (([[1], [2]], [0, 1], [5, 5]), "an index occurs more than once"),
    ),
)
def test_what_is_no_reference_is_refused(reference, message):
    with pytest.raises(ValueError, match=message):
        SentenceReference(*reference)


def test_sentences_of_an_upload_are_paired_by_the_tokens_that_differ():
    truths = np.array([[1, 2, 3], [4, 5, 900], [7, 8, 9]])
    guesses = np.array([[7, 8, 1], [1, 2, 900], [4, 5, 6]])
    # By squared differences of the numbers, 900 would decide.
    np.testing.assert_array_equal(assign(guesses, truths), [1, 2, 0])


def test_sentences_of_a_batch_are_paired_by_what_they_share_and_then_by_places():
    truths = np.array([[1, 2, 3, 4], [5, 2, 6, 7]])
    # The first has all of the second truth's tokens, and one of the first's in place.
    guesses = np.array([[7, 2, 5, 6], [9, 9, 9, 1]])
    np.testing.assert_array_equal(assign(guesses, truths), [1, 0])
    # Both share the same: places decide.
    truths, guesses = np.array([[1, 2, 3], [3, 1, 2]]), np.array([[3, 1, 2], [1, 2, 3]])
    np.testing.assert_array_equal(assign(guesses, truths), [1, 0])
    # In the place of padding nothing counts.
    truths = np.array([[1, 2, -1], [8, 9, 3]])
    guesses = np.array([[8, 9, 4], [1, 5, 3]])
    np.testing.assert_array_equal(assign(guesses, truths), [1, 0])


def test_the_pairing_of_sentences_is_the_best_of_all():
    draws = np.random.default_rng(5)
    for _ in range(20):
        guesses, truths = draws.integers(0, 4, (2, 4, 5))

        def total(order, guesses=guesses, truths=truths):
            shared = places = 0
            for guess, truth in zip(guesses[list(order)], truths, strict=True):
                shared += sum(
                    (Counter(guess.tolist()) & Counter(truth.tolist())).values()
                )
                places += np.sum(guess == truth)
            return shared, places

        best = max(map(total, itertools.permutations(range(4))))
        assert total(assign(guesses, truths)) == best


# --- a kind of input -----------------------------------------------------------------

SPEC = sentences_of(4, ("▁the", "▁cat", "▁sat", "▁mat", "s"))


def test_sentences_are_scored_as_tokens_and_as_text():
    truths, guesses = (
        np.array([[0, 1, 2, 4]] * 2),
        np.array([[0, 1, 2, 4], [0, 3, 2, 4]]),
    )
    table = find_kind(SPEC).score(guesses, truths, SPEC)
    np.testing.assert_array_equal(table["token_accuracy"], [1, 0.75])
    assert table["text"].tolist() == ["the cat sats"] * 2
    assert table["text_guess"].tolist() == ["the cat sats", "the mat sats"]
    np.testing.assert_allclose(table["rouge_1"], [1, 2 / 3])


@pytest.mark.parametrize(
    ("accuracy", "floor", "loss", "finite", "outcome"),
    (
        (1.0, 0.25, 1.0, True, "recovered"),
        (0.625, 0.25, 1.0, True, "recovered"),  # 3 of 8 are wrong, 6 in the floor
        (0.5, 0.25, 1.0, True, "unsolved"),
        (0.5, 0.25, 0.0, True, "ambiguous"),
        (0.5, 0.0, 0.0, True, "recovered"),
        (0.4, 0.0, 0.0, True, "ambiguous"),  # less than half
        (0.875, 0.875, 1.0, True, "unsolved"),  # the floor has it, too
        (0.5, 0.25, 0.0, False, "diverged"),
        (1.0, 0.25, np.nan, True, "diverged"),
        (0.0, 0.25, None, True, "unsolved"),
    ),
)
def test_outcomes_of_a_sentence(accuracy, floor, loss, finite, outcome):
    row = {"token_accuracy": accuracy, "floor_token_accuracy": floor}
    least = None if loss is None else 0.5
    assert KINDS["text"].outcome(row, loss, least, finite) == outcome


def test_the_best_floor_is_the_nearest_of_those_that_an_input_has():
    """The third input has one floor alone."""
    accuracy = {
        "a": ([0, 1, 2], {"token_accuracy": np.array([0.5, 0.25, 0.75])}),
        "b": ([0, 1], {"token_accuracy": np.array([0.25, 1.0])}),
    }
    found = KINDS["text"].best_floors(np.zeros((3, 4)), [{}] * 3, accuracy)
    assert found["floor_token_accuracy"].tolist() == [0.5, 1.0, 0.75]
    truths = np.zeros((3, 2, 2, 1), np.float32)
    made = [{"a": truths[0] + 0.5, "b": truths[0] + 0.25}] * 2 + [{"a": truths[0] + 1}]
    errors = {
        "a": ([0, 1, 2], {"mse_affine_oracle": np.array([0.5, 0.25, 0.75])}),
        "b": ([0, 1], {"mse_affine_oracle": np.array([0.25, 1.0])}),
    }
    found = KINDS["image"].best_floors(truths, made, errors)
    assert found["floor_mse"].tolist() == [0.0625, 0.0625, 1]
    assert found["floor_mse_affine"].tolist() == [0.25, 0.25, 0.75]


def test_an_error_after_the_affine_fit_is_that_of_its_ratio(monkeypatch):
    monkeypatch.setattr("kljax.metrics.lpips_available", lambda: False)
    spec = images_of((8, 8, 1))
    generator = np.random.default_rng(0)
    guesses, truths = np.float32(generator.random((2, 3, 8, 8, 1)))
    table = KINDS["image"].score(guesses, truths, spec)
    for guess, truth, error in zip(
        guesses, truths, table["mse_affine_oracle"], strict=True
    ):
        line = np.polyfit(guess.ravel(), truth.ravel(), 1)
        fitted = np.clip(np.polyval(line, guess.ravel()), 0, 1)
        expected = np.mean((fitted - truth.ravel()) ** 2)
        assert error == pytest.approx(expected, rel=1e-4)


def test_a_kind_of_ones_own_is_named_by_where_it_is():
    import dataclasses

    mine = dataclasses.replace(SPEC, kind="kljax.metrics.kinds.images:IMAGES")
    assert find_kind(mine) is KINDS["image"] and isinstance(find_kind(mine), Kind)
    for kind, message in (("texts", "did you mean 'text'"), ("math:pi", "is float")):
        with pytest.raises(ValueError, match=message):
            find_kind(dataclasses.replace(SPEC, kind=kind))
    assert isinstance(mine, InputSpec)
