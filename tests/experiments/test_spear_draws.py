"""How many draws SPEAR needs: chances and expected numbers by hand."""

import numpy as np
import pytest
from spear_draws import expected_draws, share_of_full_rank


def test_one_example_takes_one_over_its_chance():
    np.testing.assert_allclose(expected_draws(np.array([0.01])), 100, rtol=1e-3)


def test_alike_examples_take_what_a_collector_of_coupons_takes():
    expected = 1e3 * (1 + 1 / 2 + 1 / 3 + 1 / 4)
    np.testing.assert_allclose(expected_draws(np.full(4, 1e-3)), expected, rtol=1e-3)


def test_unlike_examples_by_inclusion_and_exclusion():
    one, other = 1e-3, 1e-4
    expected = 1 / one + 1 / other - 1 / (one + other)
    np.testing.assert_allclose(
        expected_draws(np.array([one, other])), expected, rtol=1e-3
    )


def test_an_example_that_is_never_met_takes_forever():
    assert expected_draws(np.array([0.5, 0.0])) == np.inf


def test_an_example_that_is_shut_nowhere_is_never_met():
    lit = np.array([[True, True], [False, True]])
    assert share_of_full_rank(np.random.default_rng(0), lit, 0) == 0


@pytest.mark.parametrize(("one", "expected"), [(0, 0.25), (1, 0.4)])
def test_of_two_examples_the_other_must_be_open(one, expected):
    """The first is shut at units 0 to 3, the second at 1 to 5: one unit tells them."""
    lit = np.ones((2, 8), bool)
    lit[0, :4] = lit[1, 1:6] = False
    found = share_of_full_rank(np.random.default_rng(0), lit, one)
    assert abs(found - expected) < 0.05
