"""Metrics of a user's own: what fits is mapped over images, what does not is named."""

import doctest
import sys
import types
import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_studies import close, pretended, scored, tiny

from kljax.core.folders import LeftOut
from kljax.metrics import check_metric, find_metrics, metric, own_metrics, score_pairs

PAIR = np.random.default_rng(0).random((2, 8, 8, 3)).astype(np.float32)


@metric("largest difference", leaks=-1)
def worst(guess, truth):
    return jnp.max(jnp.abs(guess - truth))


@metric("largest difference", leaks=-1, compiled=False, name="worst_on_host")
def on_host(guess, truth):
    return float(np.max(np.abs(guess - truth)))


@pytest.fixture
def mine(monkeypatch):
    """Makes a module ``mine`` of some functions."""

    def make(**functions):
        module = types.ModuleType("mine")
        vars(module).update(functions)
        monkeypatch.setitem(sys.modules, "mine", module)

    return make


def test_examples_in_docstrings():
    assert doctest.testmod(own_metrics).attempted > 0


@pytest.mark.parametrize("own", (worst, on_host))
def test_a_guess_is_scored_as_it_would_be_published(own):
    guesses = np.stack([PAIR[0], 3 * PAIR[0] - 1, PAIR[1]])
    guesses[2, 0, 0, 0] = np.inf
    found = score_pairs(own, guesses, np.stack([PAIR[1]] * 3))
    expected = [np.abs(np.clip(g, 0, 1) - PAIR[1]).max() for g in guesses[:2]]
    np.testing.assert_allclose(found[:2], expected, rtol=1e-6)
    assert np.isnan(found[2])  # though XLA's maximum passes NaN over


def test_a_column_is_named_and_shown_by_default():
    column = worst.column
    assert (column.name, column.form, column.shown) == ("worst", ".3f", "terminal")
    assert (column.knows, column.rows, column.leaks) == ("scorer", "all", -1)
    assert on_host.column.name == "worst_on_host"
    assert worst(np.ones(2), np.zeros(2)) == 1  # still the function


@pytest.mark.parametrize(
    ("given", "message"),
    (
        (lambda guess, truth: 0, "metric 'mine:own' has no column: write @kljax"),
        (3, "metric 'mine:own' is no function, but int"),
        (metric("x", name="ssim")(abs), "rows have a column 'ssim' already"),
        (metric("x", name="recovered")(abs), "a column 'recovered' already"),
        (metric("x", name="a", rows="attack")(abs), "must be of numbers, of all rows"),
        (
            metric("x", name="a", dtype="string", form="")(abs),
            "must be of numbers, of all rows",
        ),
    ),
)
def test_what_is_no_metric_is_refused(mine, given, message):
    mine(own=given)
    with pytest.raises(ValueError, match=message):
        find_metrics(("mine:own",))


def test_two_metrics_of_one_name_are_refused(mine):
    mine(one=worst, two=worst)
    with pytest.raises(ValueError, match="column 'worst' is there twice"):
        find_metrics(("mine:one", "mine:two"))


@pytest.mark.parametrize(
    ("function", "message"),
    (
        (lambda g, t: g - t, r"gives an array of shape \(8, 8, 3\) for one input"),
        (lambda g, t: g.nothing, r"cannot score inputs of shape \(8, 8, 3\) .Attr"),
        (lambda g, t: float(g.sum()), "needs compiled=False"),
    ),
)
def test_what_cannot_score_is_refused_before_the_work(function, message):
    with pytest.raises(ValueError, match=message):
        check_metric(metric("x", name="a")(function), *PAIR)
    check_metric(on_host, *PAIR)


def test_a_metric_that_fails_in_the_end_costs_no_row(mine):
    @metric("x", compiled=False)
    def fails(guess, truth):
        raise RuntimeError("no more")

    mine(fails=fails, worst=worst)
    result = pretended(tiny(metrics=("mine:fails", "mine:worst")), close)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        rows = scored(result)
    assert {str(w.message) for w in told if w.category is LeftOut} == {
        "metric 'fails' is left out: no more"
    }
    assert {row["fails"] for row in rows} == {None}
    assert all(0 < row["worst"] <= 1 and row["ssim"] for row in rows)
