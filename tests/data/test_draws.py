"""Draws: raw integers, and what is made of them."""

import numpy as np
import pytest
from scipy import stats

from kljax.data.draws import raw, shuffled, uniforms


def test_draws_of_different_names_differ():
    names = [
        (0, "a"),
        (1, "a"),
        (2**64, "a"),
        (0, "b"),
        (0, "a", 0),
        (0, "a", 0, 0),
        (0, "a", 1),
        (0, "a", 1, 0),
        (0, "a", 0, 1),
        (1, "a", 0),
    ]
    drawn = {tuple(raw(4, *name).tolist()) for name in names}
    assert len(drawn) == len(names)
    assert raw(4, 0, "a").tolist() == raw(4, 0, "a").tolist()


def test_uniforms_are_uniform_and_inside():
    values = uniforms(20_000, 0, "test")
    assert 0 < values.min() and values.max() < 1
    assert stats.kstest(values, "uniform").pvalue > 1e-3
    assert stats.kstest(values**1.05, "uniform").pvalue < 1e-3
    ends = (np.array([0, 2**64 - 1], np.uint64) >> 12) + 0.5
    assert np.all((ends * 2.0**-52 > 0) & (ends * 2.0**-52 < 1))


def test_all_orders_are_as_likely():
    orders = [tuple(shuffled(4, seed, "test")) for seed in range(2400)]
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > 1e-3


def test_numbers_of_a_draw_must_fit():
    with pytest.raises(ValueError, match="a number of test is 4294967296"):
        raw(1, 0, "test", 2**32)
    with pytest.raises(ValueError, match="seed is"):
        raw(1, 2**128, "test")
