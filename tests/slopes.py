"""Gradients held against differences of the plainest formula, in float64.

Descent goes where the gradient says: one that belongs to another formula than the value
would still find images, only worse ones.
"""

import numpy as np
import pytest


def differences(formula, at):
    """Takes the gradient of a formula of one array by central differences."""
    slopes, step = np.zeros(at.shape), 1e-5
    for place in np.ndindex(at.shape):
        move = np.zeros(at.shape)
        move[place] = step
        slopes[place] = (formula(at + move) - formula(at - move)) / (2 * step)
    return slopes


def assert_is_formula(value, slopes, formula, at):
    """Holds a value and its gradient against a formula of one array."""
    at = np.asarray(at, np.float64)
    assert float(value) == pytest.approx(formula(at), rel=1e-5)
    expected = differences(formula, at)
    largest_slope = np.abs(expected).max()
    assert largest_slope > 0
    np.testing.assert_allclose(slopes, expected, rtol=0, atol=2e-5 * largest_slope)
