"""Partitions: every example at one client, drawn as the definitions say."""

import doctest
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from test_dataset import Rows

from kljax.data import (
    PARTITIONS,
    by_size,
    dirichlet,
    iid,
    partition,
    shards,
)
from kljax.data.draws import uniforms

TEXTS = ("iid", "dirichlet=5", "shards", "shards=3", "by-size=1,2,3,4")
LABELS = np.arange(200) % 10  # of four clients


def lists(parts):
    return [part.tolist() for part in parts]


def composition(parts, labels):
    """Shares of the labels at each client, [clients, classes]."""
    counts = np.stack([np.bincount(labels[p], minlength=10) for p in parts])
    return counts / counts.sum(axis=1, keepdims=True)


def skew(parts, labels):
    """Total variation between a client's labels and all labels, mean over clients."""
    everyone = np.bincount(labels, minlength=10) / len(labels)
    return float(np.abs(composition(parts, labels) - everyone).sum(axis=1).mean() / 2)


def test_every_partition_is_under_test():
    assert {text.partition("=")[0] for text in TEXTS} == set(PARTITIONS)


# ---- All of them ---------------------------------------------------------------------


@pytest.mark.parametrize("text", TEXTS)
@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 5), min_size=40, max_size=90), st.integers(0, 2**64))
def test_every_example_is_given_to_exactly_one_client(text, labels, seed):
    try:
        parts = partition(text, labels, 4, seed)
    except ValueError as error:
        # Few examples can leave a client with none; then it says so.
        assert text.startswith("dirichlet") and "leaves client" in str(error)
        return
    assert isinstance(parts, tuple) and len(parts) == 4
    assert {part.dtype for part in parts} == {np.dtype(np.int64)}
    assert all(len(part) and np.all(np.diff(part) > 0) for part in parts)
    assert sorted(np.concatenate(parts)) == list(range(len(labels)))


@pytest.mark.parametrize("text", TEXTS)
def test_the_seed_decides(text):
    once, again, other = (lists(partition(text, LABELS, 4, s)) for s in (0, 0, 1))
    assert once == again
    assert once != other


@pytest.mark.parametrize("text", TEXTS)
def test_lazy_labels_are_read(text):
    held = partition(text, LABELS, 4, 0)
    assert lists(partition(text, Rows(LABELS), 4, 0)) == lists(held)
    assert lists(partition(text, LABELS.tolist(), 4, 0)) == lists(held)


def test_a_single_client_holds_everything():
    for text in ("iid", "dirichlet=0.1", "shards", "by-size=3"):
        assert lists(partition(text, LABELS, 1, 0)) == [list(range(200))]


def test_partitions_are_what_they_always_were():
    # Clients of published runs are found again by their seed alone.
    labels = [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    assert lists(iid(labels, 3, 0)) == GOLDEN["iid"]
    assert lists(dirichlet(labels, 3, 0, alpha=1)) == GOLDEN["dirichlet"]
    assert lists(shards(labels, 2, 0)) == GOLDEN["shards"]
    assert lists(by_size(labels, 2, 0, sizes=[4, 1])) == GOLDEN["by-size"]


GOLDEN = {
    "iid": [[3, 6, 8, 9], [0, 1, 4], [2, 5, 7]],
    "dirichlet": [[2, 8], [1, 3, 5, 9], [0, 4, 6, 7]],
    "shards": [[0, 1, 2, 4, 5], [3, 6, 7, 8, 9]],
    "by-size": [[0, 1, 2, 3, 4, 6, 8, 9], [5, 7]],
}


# ---- Each by itself ------------------------------------------------------------------


def test_iid_sizes_differ_by_one_at_most():
    assert [len(part) for part in iid(np.zeros(11, int), 4, 3)] == [3, 3, 3, 2]


def chi_square(parts, labels):
    table = np.stack([np.bincount(labels[part], minlength=10) for part in parts])
    return stats.chi2_contingency(table).pvalue


@pytest.mark.parametrize("text", ["iid", "by-size=1,2,3,4"])
def test_labels_and_clients_are_independent(text):
    labels = np.sort(np.arange(4000) % 10)
    values = [chi_square(partition(text, labels, 4, s), labels) for s in range(200)]
    assert stats.kstest(values, "uniform").pvalue > 1e-3
    # A deal without shuffling would not pass, nor would a slight skew.
    assert chi_square(np.array_split(np.arange(4000), 4), labels) < 1e-6
    slight = [chi_square(dirichlet(labels, 4, s, alpha=300), labels) for s in range(50)]
    assert stats.kstest(slight, "uniform").pvalue < 1e-6


def test_iid_favours_no_client():
    homes = [
        next(i for i, part in enumerate(iid(np.zeros(8, int), 4, seed)) if 5 in part)
        for seed in range(1000)
    ]
    assert stats.chisquare(np.bincount(homes, minlength=4)).pvalue > 1e-3


def dirichlet_shares(alpha, clients=4, per_class=500, classes=2000):
    """The share of client 0 in each of many classes."""
    labels = np.repeat(np.arange(classes), per_class)
    first = dirichlet(labels, clients, 0, alpha=alpha)[0]
    return np.bincount(labels[first], minlength=classes) / per_class


@pytest.mark.parametrize("alpha", [0.2, 1.0, 10.0])
def test_shares_have_the_distribution_of_dirichlet(alpha):
    # A component of a symmetric Dirichlet vector is Beta(alpha, (n - 1) alpha).
    shares = dirichlet_shares(alpha)
    # Rounded to 1 / 500: spread out evenly again, or a third of them would be ties.
    jitter = uniforms(len(shares), 0, "jitter") - 0.5
    shares = np.clip(shares + jitter / 500, 1e-9, 1 - 1e-9)
    right = stats.beta(alpha, 3 * alpha)
    shown = shares[(shares > 0.01) & (shares < 0.99)]  # where rounding is nothing
    low, high = right.cdf([0.01, 0.99])
    values = (right.cdf(shown) - low) / (high - low)
    assert stats.kstest(values, "uniform").pvalue > 1e-3
    inside = stats.binomtest(len(shown), len(shares), high - low)
    assert inside.pvalue > 1e-3
    for wrong_alpha in (alpha / 2, alpha * 2):
        wrong = stats.beta(wrong_alpha, 3 * wrong_alpha)
        assert stats.kstest(shares, wrong.cdf).pvalue < 1e-3


def test_a_small_alpha_is_skewed_and_a_large_one_nearly_iid():
    labels = np.arange(10_000) % 10
    skews = [
        np.mean([skew(dirichlet(labels, 5, s, alpha=a), labels) for s in range(5)])
        for a in (0.05, 0.5, 5, 50, 1e6)
    ]
    assert np.all(np.diff(skews) < 0)
    level = np.mean([skew(iid(labels, 5, s), labels) for s in range(5)])
    # At 1e6 classes are cut evenly, and that is more even than by chance.
    assert skews[0] > 0.5 and skews[-1] < level < 0.05


def test_the_least_alpha_gives_every_class_to_one_client():
    labels = np.repeat(np.arange(40), 5)
    parts = dirichlet(labels, 2, 0, alpha=1e-6)
    assert sorted(sum((np.unique(labels[p]).tolist() for p in parts), [])) == [
        *range(40)
    ]
    # Either has some of them: the client is drawn, too.
    assert min(len(part) for part in parts) > 0


def test_proportions_of_a_class_do_not_depend_on_the_others():
    labels = np.repeat([3, 7], 50)
    both = dirichlet(labels, 3, 1, alpha=1)
    alone = dirichlet(np.full(50, 3), 3, 1, alpha=1)
    assert [(part < 50).sum() for part in both] == [len(part) for part in alone]
    assert len({(part < 50).sum() for part in both}) > 1


def test_shards_by_hand():
    # Six shards of two, each of one label: three clients with two shards each.
    labels = np.array([2, 0, 1, 0, 2, 1, 0, 1, 2, 0, 1, 2])
    for seed in range(20):
        parts = shards(labels, 3, seed)
        assert [len(part) for part in parts] == [4, 4, 4]
        for part in parts:
            counts = np.bincount(labels[part], minlength=3)
            assert set(counts) <= {0, 2, 4}


@pytest.mark.parametrize("each", [1, 2, 3])
def test_shards_bound_the_labels_of_a_client(each):
    labels = np.arange(1200) % 10
    parts = shards(labels, 10, 0, shards_per_client=each)
    held = [len(np.unique(labels[part])) for part in parts]
    assert max(held) == each
    # Where shards span borders between labels: twice as many.
    uneven = np.repeat(np.arange(5), [200, 210, 190, 230, 170])
    parts = shards(uneven, 8, 0, shards_per_client=each)
    assert max(len(np.unique(uneven[part])) for part in parts) <= 2 * each
    assert max(len(np.unique(labels[part])) for part in iid(labels, 10, 0)) == 10


def test_shards_within_a_label_are_shuffled():
    parts = shards(np.zeros(100, int), 5, 0, shards_per_client=1)
    assert all(np.diff(part).max() > 1 for part in parts)


def test_sizes_are_met():
    def counts(n, sizes):
        return [len(p) for p in by_size(np.zeros(n, int), len(sizes), 0, sizes=sizes)]

    assert counts(10, [1, 2, 7]) == [1, 2, 7]
    assert counts(10, [0.5, 0.25, 0.25]) in ([5, 2, 3], [5, 3, 2])
    sizes = np.array([3.3, 1.9, 0.4, 8.8])
    assert np.all(np.abs(counts(1000, sizes) - sizes / sizes.sum() * 1000) < 1)
    exact = [601, 1, 57, 300, 41]
    assert counts(1000, exact) == exact


# ---- Refusals ------------------------------------------------------------------------

TWO_LABELS = [0, 1] * 10


@pytest.mark.parametrize(
    "text, labels, clients, seed, error, message",
    [
        ("iid", [0, 1], 3, 0, ValueError, "iid leaves client 2 of 3 with no ex.*fewer"),
        ("iid", [0, 1], 5, 0, ValueError, r"client 2 of 5 \(and 2 more\)"),
        (
            "dirichlet=0.01",
            TWO_LABELS,
            9,
            0,
            ValueError,
            "alpha 0.01.*leaves client .* of 9.*larger alpha, fewer.*another seed",
        ),
        ("shards", TWO_LABELS, 11, 0, ValueError, "11 clients of 2 shards need 22.*20"),
        ("shards=0", TWO_LABELS, 2, 0, ValueError, "shards_per_client is 0"),
        ("by-size=1,2", TWO_LABELS, 3, 0, ValueError, "2 sizes for 3 clients"),
        ("by-size=1,-2", TWO_LABELS, 2, 0, ValueError, "size 1 of by-size is -2"),
        ("by-size=1,nan", TWO_LABELS, 2, 0, ValueError, "size 1 of by-size is nan"),
        ("by-size=1,1000", TWO_LABELS, 2, 0, ValueError, "client 0 of 2 with no"),
        ("dirichlet=0", TWO_LABELS, 2, 0, ValueError, "alpha.*is 0; give a positive"),
        ("dirichlet=inf", TWO_LABELS, 2, 0, ValueError, "alpha.*is inf"),
        ("dirichlet=1e-9", TWO_LABELS, 2, 0, ValueError, "alpha.*1e-09.*1e-6 to 1e6"),
        ("dirichlet", TWO_LABELS, 2, 0, ValueError, "needs alpha.*dirichlet=0.3"),
        ("dirichlet=", TWO_LABELS, 2, 0, ValueError, "needs alpha.*dirichlet=0.3"),
        ("dirichlet=a", TWO_LABELS, 2, 0, ValueError, "'dirichlet=a' needs alpha"),
        ("shards=", TWO_LABELS, 2, 0, ValueError, "needs shards_per_client.*shards=2"),
        ("shards=2.5", TWO_LABELS, 2, 0, ValueError, "needs shards_per_client"),
        ("by-size=1,,2", TWO_LABELS, 2, 0, ValueError, "needs sizes.*by-size=1,2,4"),
        ("iid=3", TWO_LABELS, 2, 0, ValueError, "iid has no value, drop '=3'"),
        ("dirichlets=1", TWO_LABELS, 2, 0, ValueError, "did you mean 'dirichlet'"),
        ("by_size=1,2", TWO_LABELS, 2, 0, ValueError, "did you mean 'by-size'"),
        ("xyz", TWO_LABELS, 2, 0, ValueError, "unknown partition 'xyz'; known: iid"),
        ("iid", [], 2, 0, ValueError, "no labels"),
        ("iid", [0, -1], 2, 0, ValueError, "labels.*hold -1"),
        ("iid", [0.0, 1.0], 2, 0, TypeError, "labels.*float64"),
        ("iid", TWO_LABELS, 0, 0, ValueError, "clients is 0"),
        ("iid", TWO_LABELS, 2.0, 0, TypeError, "clients is 2.0; give an integer"),
        ("iid", TWO_LABELS, 2, -1, ValueError, "seed is -1"),
        ("iid", TWO_LABELS, 2, "0", TypeError, "seed is '0'"),
    ],
)
def test_bad_input_is_named(text, labels, clients, seed, error, message):
    with pytest.raises(error, match=message):
        partition(text, labels, clients, seed)


def test_a_least_number_of_examples_may_be_asked_for():
    sizes = dict(sizes=[1, 9])
    assert len(by_size(TWO_LABELS, 2, 0, **sizes, min_examples=2)[0]) == 2
    with pytest.raises(ValueError, match="client 0 of 2 with 2 examples.*is 3"):
        by_size(TWO_LABELS, 2, 0, **sizes, min_examples=3)
    with pytest.raises(ValueError, match="min_examples is 0"):
        partition("iid", TWO_LABELS, 2, 0, min_examples=0)


def test_alpha_must_be_a_number():
    with pytest.raises(TypeError, match="alpha of dirichlet is None"):
        dirichlet(TWO_LABELS, 2, 0, alpha=None)


def test_the_example_of_the_module_runs():
    results = doctest.testmod(
        sys.modules["kljax.data.partitioning"]
    )  # not the function
    assert results.attempted > 0 and results.failed == 0
