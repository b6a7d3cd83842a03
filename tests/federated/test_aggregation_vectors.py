"""Distances, sequences and medians of vectors, against their slow forms and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize
from slow_rules import slow_bulyan, slow_sequence, some_uploads, vectors
from test_aggregation import aggregate, vector
from tiny_studies import quick_compilation

from kljax.core.types import Public
from kljax.federated.aggregation import (
    bulyan,
    central_point,
    geometric_median,
    trimmed_selection,
)
from kljax.federated.aggregation.vectors import (
    as_rows,
    as_upload,
    sort_clients,
    squared_distances,
)
from kljax.federated.clients import Upload


@pytest.fixture(autouse=True)
def quickly():
    with quick_compilation():
        yield


# Compiled whole: an operation at a time takes longer to compile.
weiszfeld = jax.jit(central_point.weiszfeld)
mean_around_median = jax.jit(trimmed_selection.mean_around_median, static_argnums=1)
krum_sequence = jax.jit(trimmed_selection.krum_sequence, static_argnums=1)
distances = jax.jit(squared_distances)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def slow_distances(rows):
    rows = rows.astype(np.float64)
    return np.array([[np.sum((a - b) ** 2) for b in rows] for a in rows])


def near_pairs():
    """Vectors of a cloud: two that are alike, two that nearly are, three far off."""
    rows = draw(12, 300) + 3 * draw(300, seed=1)
    rows[1] = rows[0]
    rows[3] = rows[2] + np.float32(1e-3)
    rows[5:8] *= np.float32(1e4)
    rows[8] = rows[7] + np.float32(1)
    return rows


@pytest.mark.parametrize("rows", [draw(7, 5), near_pairs(), near_pairs()[:3]])
def test_distances_are_their_slow_form(rows):
    found = distances(rows)
    np.testing.assert_allclose(found, slow_distances(rows), rtol=2e-5)


def test_distances_of_what_is_beyond_float32_leave_the_others_alone():
    rows = near_pairs()
    rows[5:8] = np.float32(1e25)
    found = np.asarray(distances(rows))
    others = [0, 1, 2, 3, 4, 8, 9, 10, 11]
    expected = slow_distances(rows[others])
    np.testing.assert_allclose(found[np.ix_(others, others)], expected, rtol=2e-5)
    assert np.all(np.isinf(found[5:8][:, others])) and not np.isnan(found).any()
    assert np.all(found[5:8, 5:8] == 0)


def test_coordinates_are_sorted():
    x = np.array([[0.5, -0.0], [-3, 1e-40], [2, np.inf], [-1e-40, -7]], np.float32)
    for dtype in (jnp.float32, jnp.bfloat16):
        mine = jnp.asarray(x, dtype)
        found = sort_clients(mine)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, np.sort(np.asarray(mine), axis=0).T)
    assert sort_clients(np.array([[3], [1], [2]])).tolist() == [[1, 2, 3]]


def test_rows_are_uploads():
    uploads = some_uploads()
    rows = as_rows(uploads)
    np.testing.assert_array_equal(rows, vectors(uploads))
    back = as_upload(rows[3], uploads)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y[3]), back, uploads)


# --- Bulyan ------------------------------------------------------------------------


@pytest.mark.parametrize(("clients", "attackers"), [(11, 2), (12, 1)])
def test_a_sequence_is_that_of_krum_one_after_another(clients, attackers):
    for seed in range(3):
        rows = draw(clients, 6, seed=seed)
        rows[4] = rows[7]  # two at no distance
        rows[2] *= 100
        found = krum_sequence(distances(rows), attackers)
        assert found.tolist() == slow_sequence(rows.astype(np.float64), attackers)


def test_nobody_is_selected_twice_where_all_are_far():
    apart = np.full((7, 7), np.inf, np.float32)
    np.fill_diagonal(apart, 0)
    assert sorted(krum_sequence(apart, 1).tolist()) == [0, 1, 2, 3, 4]


def test_bulyan_by_hand():
    # Seven points on a line, F = 1. Of four neighbours 2 has the least sum of squares,
    # of three 7.5 (100.5, and 1 has 105.7), of two 1. 0 and 8.9 are nearest to each
    # other, and 0 is the first; of 8.9, 30 and -40 nobody has neighbours to count. Of
    # 0, 1, 2, 7.5, 8.9 the median is 2: 0, 1, 2 are kept.
    x = np.array([0, 1, 2, 7.5, 8.9, 30, -40], np.float32)[:, None]
    assert krum_sequence(distances(x), 1).tolist() == [2, 3, 1, 0, 4]
    uploads = Upload(Public({"w": x}), {})
    assert vector(
        jax.jit(lambda x: bulyan().finish(_Server, x, np.ones(7))[0])(uploads)
    ) == [1.0]


class _Server:
    aggregator = ()


def test_values_around_a_median_by_hand():
    # Medians 2 and 1.5: of five values, or of four, two are dropped.
    x = np.array([[0, 1, 2, 9, 9.5], [7, 2, 2.5, 0, 3]], np.float32).T
    assert mean_around_median(x, 2).tolist() == pytest.approx([1.0, 2.5])
    # 0 and 4 are at one distance from 2: the smaller is nearer.
    assert mean_around_median(np.array([0.0, 2, 4]), 1).tolist() == 1


def test_rules_know_no_numbers_of_clients():
    """Of Bulyan for F <= 2 the last one is selected by its number."""
    uploads = some_uploads(15)
    order = np.random.default_rng(3).permutation(15)
    shuffled = jax.tree.map(lambda x: x[order], uploads)
    ones = np.ones(15, np.float32)
    for rule in (bulyan(3), geometric_median()):
        expected = vector(aggregate(rule, uploads, ones))
        found = vector(aggregate(rule, shuffled, ones))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    slow = slow_bulyan(3)(vectors(uploads), ones)
    np.testing.assert_allclose(vector(aggregate(bulyan(3), uploads, ones)), slow, 2e-5)


# --- the geometric median ----------------------------------------------------------


def test_the_geometric_median_has_the_least_sum_of_distances():
    rows, weights = draw(9, 3).astype(np.float64), np.arange(1.0, 10)

    def total(point):
        return weights @ np.linalg.norm(rows - point[None], axis=1)

    best = optimize.minimize(total, rows.mean(axis=0), tol=1e-10)
    found = weiszfeld(rows.astype(np.float32), weights, 100, 1e-6, 1e-6)
    found = np.asarray(found)
    np.testing.assert_allclose(found, best.x, atol=2e-3)
    assert total(found) <= best.fun * (1 + 1e-6)
    assert total(rows.mean(axis=0)) > best.fun * (1 + 1e-3)


def test_geometric_medians_by_hand():
    # On a line it is the median, of the weights; a majority in one place is it.
    line = np.array([[0.0], [1], [10]], np.float32)
    for weights, expected in (([1.0, 1, 1], 1), ([1, 1, 5], 10), ([5, 1, 1], 0)):
        found = weiszfeld(line, np.array(weights), 1000, 1e-9, 1e-6)
        assert found == pytest.approx(expected, abs=1e-3)
    # Of a triangle with equal sides, its centre.
    corners = np.array([[0, 0], [1, 0], [0.5, np.sqrt(0.75)]], np.float32)
    found = weiszfeld(corners, np.ones(3), 100, 1e-6, 1e-6)
    np.testing.assert_allclose(found, [0.5, np.sqrt(1 / 12)], atol=1e-3)
    # All alike: at no distance from anybody.
    found = weiszfeld(np.full((4, 2), 3, np.float32), np.ones(4), 100, 1e-6, 1e-6)
    np.testing.assert_allclose(found, 3, rtol=1e-6)


def test_three_iterations_are_moved_by_one_client():
    moved = {}
    for far in (1e5, 1e6):
        rows = draw(7, 5)
        rows[0] = far
        for iterations in (3, 100):
            found = weiszfeld(rows, np.ones(7), iterations, 1e-6, 1e-6)
            moved[far, iterations] = np.abs(found).max()
    assert moved[1e6, 3] > 5 * moved[1e5, 3] > 50
    assert moved[1e6, 100] < 3
