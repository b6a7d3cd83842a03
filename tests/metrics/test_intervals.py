import itertools
import math

import numpy as np
import pytest

from kljax.metrics import cluster_bootstrap, interval, wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # By hand from Wilson's formula with z = 1.95996.
        (0, 10, 0.0, 0.2775),
        (5, 10, 0.2366, 0.7634),
        (10, 10, 0.7225, 1.0),
        (8, 16, 0.2800, 0.7200),
        (1, 1, 0.2065, 1.0),  # 1 / (1 + z^2)
        (0, 1, 0.0, 0.7935),
        # Newcombe, Statistics in Medicine 1998, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_table(successes, n, low, high):
    got = wilson(successes, n)
    assert got.low == pytest.approx(low, abs=6e-5)
    assert got.high == pytest.approx(high, abs=6e-5)
    assert got.estimate == successes / n
    assert (got.method, got.groups) == ("wilson", n)


def test_wilson_confidence():
    z = 2.5758293  # two-sided .99
    centre, spread = (3 + z**2 / 2) / (12 + z**2), z / (12 + z**2)
    half = spread * math.sqrt(3 * 9 / 12 + z**2 / 4)
    got = wilson(3, 12, confidence=0.99)
    assert got.low == pytest.approx(centre - half, abs=1e-7)
    assert got.high == pytest.approx(centre + half, abs=1e-7)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0, 0), "n is 0"),
        ((3, 2), "successes is 3"),
        ((-1, 2), "successes is -1"),
        ((1, 2, 1.0), "confidence is 1.0"),
        ((1, 2, 95), "confidence is 95"),
        ((1, 2, 0), "confidence is 0"),
    ],
)
def test_wilson_names_what_is_wrong(arguments, words):
    with pytest.raises(ValueError, match=words):
        wilson(*arguments)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"resamples": 0}, "resamples is 0"),
        ({"resamples": 1}, "resamples is 1"),
        ({"confidence": 0}, "confidence is 0"),
        ({"confidence": 1}, "confidence is 1"),
    ],
)
def test_bootstrap_names_what_is_wrong(options, words):
    with pytest.raises(ValueError, match=words):
        cluster_bootstrap([0.1, 0.2], [0, 1], **options)
    with pytest.raises(ValueError, match=words):
        interval([0.1, 0.2], [0, 1], rate=False, **options)


def test_what_is_asked_is_handed_on():
    values, groups = clustered(np.random.default_rng(4), clusters=8)
    options = {"confidence": 0.5, "resamples": 7, "seed": 5}
    expected = cluster_bootstrap(values, groups, **options)
    assert interval(values, groups, rate=False, **options) == expected
    assert interval(values > 0, groups, rate=True, **options) == cluster_bootstrap(
        values > 0, groups, **options
    )
    assert interval([1, 0, 0], range(3), rate=True, confidence=0.5) == wilson(1, 3, 0.5)
    alike = interval([1] * 4, [0, 0, 1, 1], rate=True, confidence=0.5)
    assert alike[:3] == wilson(2, 2, 0.5)[:3]
    # By default of 95 %, of 2,000 resamples and the seed 0.
    by_default = cluster_bootstrap(values, groups, 0.95, 2000, 0)
    assert cluster_bootstrap(values, groups) == by_default
    assert interval(values, groups, rate=False) == by_default
    assert interval([1, 0, 0], range(3), rate=True) == wilson(1, 3, 0.95)


def clustered(generator, clusters=30, size=5):
    """Values with mean 0 whose clusters move together (correlation .8)."""
    shared = generator.standard_normal((clusters, 1)) * math.sqrt(0.8)
    own = generator.standard_normal((clusters, size)) * math.sqrt(0.2)
    return (shared + own).ravel(), np.repeat(np.arange(clusters), size)


def test_coverage_is_right_and_counting_each_value_as_its_own_is_not():
    generator = np.random.default_rng(0)
    right = naive = 0
    trials = 250
    for trial in range(trials):
        values, groups = clustered(generator)
        by_group = cluster_bootstrap(values, groups, resamples=400, seed=trial)
        alone = np.arange(len(values))
        by_value = cluster_bootstrap(values, alone, resamples=400, seed=trial)
        right += by_group.low <= 0 <= by_group.high
        naive += by_value.low <= 0 <= by_value.high
    # A standard error of a coverage of .94 over 250 trials is .015.
    assert 0.89 <= right / trials <= 0.985
    assert naive / trials < 0.75


def test_clusters_widen_the_interval_by_the_design_effect():
    values, groups = clustered(np.random.default_rng(1), clusters=60)
    by_group = cluster_bootstrap(values, groups)
    by_value = cluster_bootstrap(values, np.arange(len(values)))
    ratio = (by_group.high - by_group.low) / (by_value.high - by_value.low)
    # sqrt(1 + (size - 1) * correlation) = sqrt(1 + 4 * .8) = 2.05
    assert 1.6 < ratio < 2.5


def test_unequal_clusters_weigh_by_their_values():
    values = [1.0, 1.0, 1.0, 0.0]
    got = cluster_bootstrap(values, ["big", "big", "big", "small"])
    assert got.estimate == 0.75
    assert (got.low, got.high) == (0.0, 1.0)  # small twice, big twice
    assert (got.method, got.groups) == ("cluster_bootstrap", 2)


def test_bootstrap_is_reproducible_and_ignores_order():
    values, groups = clustered(np.random.default_rng(2), clusters=12)
    first = cluster_bootstrap(values, groups, seed=3)
    assert cluster_bootstrap(values, groups, seed=3) == first
    assert cluster_bootstrap(values, groups, seed=4) != first
    flipped = cluster_bootstrap(values[::-1], groups[::-1], seed=3)
    assert flipped == pytest.approx(first[:3] + first[3:], abs=1e-12)


@pytest.mark.parametrize("value", [0, 1])
def test_unanimous_groups_are_not_certain(value):
    got = interval([value] * 12, np.repeat(np.arange(4), 3), rate=True)
    assert got[:3] == wilson(4 * value, 4)[:3]
    assert (got.method, got.groups) == ("wilson_on_groups", 4)
    assert got.high - got.low > 0.4


def test_one_group_has_no_interval():
    got = cluster_bootstrap([0.2, 0.4], ["a", "a"])
    assert got.estimate == pytest.approx(0.3)
    assert math.isnan(got.low) and math.isnan(got.high)
    assert (got.method, got.groups) == ("none", 1)


def test_interval_chooses():
    binary = [True, False, True, True]
    assert interval(binary, [0, 1, 2, 3], rate=True) == wilson(3, 4)
    pairs = [0, 0, 1, 1]
    assert interval(binary, pairs, rate=True) == cluster_bootstrap(binary, pairs)
    decibels = [20.0, 22.0, 9.0, 30.0]
    got = interval(decibels, ["a", "b", "c", "d"], rate=False, seed=1)
    assert got == cluster_bootstrap(decibels, ["a", "b", "c", "d"], seed=1)
    assert got.low < np.mean(decibels) < got.high


def of_values(values, groups):
    return interval(values, groups, rate=False)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_numbers_do_not_make_a_rate(value):
    """SSIM 1 in ten victims is no rate of ten among ten."""
    got = of_values([value] * 10, np.arange(10))
    assert got.estimate == value and got.method == "none" and got.groups == 10
    assert math.isnan(got.low) and math.isnan(got.high)
    mixed = [1.0, 0.0, 1.0, 1.0]
    assert of_values(mixed, np.arange(4)) == cluster_bootstrap(mixed, np.arange(4))


def test_a_rate_is_of_what_happens_or_does_not():
    with pytest.raises(ValueError, match="1 of 3 values are neither 0 nor 1"):
        interval([0.0, 0.5, 1.0], np.arange(3), rate=True)
    with pytest.raises(TypeError, match="rate"):
        interval([0.0, 1.0], np.arange(2))


@pytest.mark.parametrize(
    ("values", "groups"),
    [
        ([0.7] * 6, np.arange(6)),
        ([0.9 - 0.6, 0.8 - 0.5, 0.7 - 0.4], np.arange(3)),  # equal but for rounding
        ([0.0, 1.0, 1.0, 0.0], [0, 0, 1, 1]),  # each group's mean is .5
    ],
)
def test_groups_that_are_all_alike_claim_no_certainty(values, groups):
    for got in (of_values(values, groups), cluster_bootstrap(values, groups)):
        assert got.estimate == pytest.approx(np.mean(values))
        assert math.isnan(got.low) and math.isnan(got.high) and got.method == "none"


@pytest.mark.parametrize(
    ("values", "alike"),
    [
        ([1 - 0.8e-9, 1 + 0.8e-9], True),
        ([1 - 1.25e-9, 1 + 1.25e-9], False),
        # About 0 nothing is relative.
        ([-0.8e-15, 0.8e-15], True),
        ([-1.25e-15, 1.25e-15], False),
    ],
)
def test_means_are_alike_up_to_rounding(values, alike):
    got = cluster_bootstrap(values, [0, 1])
    assert (got.method == "none") == alike


def slow_bootstrap(values, groups, confidence):
    """Works out the percentiles of the means of all resamples of groups, one by one."""
    members = [
        [v for v, g in zip(values, groups, strict=True) if g == name]
        for name in dict.fromkeys(groups)
    ]
    means = []
    for drawn in itertools.product(members, repeat=len(members)):
        total = count = 0
        for group in drawn:
            for value in group:
                total, count = total + value, count + 1
        means.append(total / count)
    half = 100 * (1 - confidence) / 2
    return np.percentile(means, [half, 100 - half])


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_bootstrap_is_what_all_resamples_give(confidence):
    """Groups of unlike size: the mean is over values, not over means of groups."""
    generator = np.random.default_rng(0)
    sizes = [1, 2, 12, 3, 7, 1]
    groups = np.repeat(np.arange(len(sizes)), sizes)
    values = generator.normal(np.repeat([9.0, 1.0, 0.0, 4.0, 2.0, 8.0], sizes), 0.3)
    got = cluster_bootstrap(values, groups, confidence, resamples=20000)
    low, high = slow_bootstrap(values.tolist(), groups.tolist(), confidence)
    assert (got.low, got.high) == pytest.approx((low, high), abs=0.12)
    assert got.estimate == pytest.approx(values.mean())
    # A mean of the groups' means is another number, and has other bounds.
    alone = [values[groups == g].mean() for g in range(len(sizes))]
    other = cluster_bootstrap(alone, np.arange(len(sizes)), confidence)
    assert min(abs(other.low - low), abs(other.high - high)) > 0.3


@pytest.mark.parametrize("function", [of_values, cluster_bootstrap])
@pytest.mark.parametrize(
    ("values", "groups", "words"),
    [
        ([], [], "n = 0"),
        ([1.0, 2.0], [0], r"groups \(1,\)"),
        ([[1.0]], [[0]], r"\[N\]"),
        ([1.0, math.nan, math.inf], [0, 1, 2], "2 of 3 values"),
    ],
)
def test_bad_values_are_named(function, values, groups, words):
    with pytest.raises(ValueError, match=words):
        function(values, groups)
