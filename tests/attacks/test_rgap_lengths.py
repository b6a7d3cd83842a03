"""The length of what comes back through a classifier without a bias."""

import jax
import numpy as np
import pytest
from toys import quick_jit

from kljax.attacks.closed_form.recursion import (
    _below,
    _first,
    _implausibility,
    _signals,
)

lengths = quick_jit(_signals)


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def softmax(logits):
    powers = np.exp(logits - np.max(logits))
    return powers / np.sum(powers)


def sent(inputs, weights, label):
    """Gives a client's derivative by the logits."""
    signal = softmax(weights.T @ inputs)
    signal[label] -= 1
    return signal


@pytest.mark.parametrize("classes", (2, 5))
@pytest.mark.parametrize("seed", range(3))
def test_every_length_listed_fits_and_the_clients_is_among_them(classes, seed):
    generator = np.random.default_rng(seed)
    inputs = generator.normal(size=6)
    weights = generator.normal(size=(6, classes))
    label = seed % classes
    true = sent(inputs, weights, label)
    gradient = np.outer(inputs, true)
    found = np.asarray(lengths(gradient, weights))
    assert found.shape == (2, 2, classes)
    distances = np.linalg.norm(found - true, axis=-1)
    assert np.min(distances) < 1e-9
    # All are along the one direction, of either sign.
    along = found @ true / np.linalg.norm(true)
    np.testing.assert_allclose(np.abs(along), np.linalg.norm(found, axis=-1), rtol=1e-9)
    assert np.all(along[0] * along[1] < 0)
    # Of the client's sign each length fits: twice the same if there is no other.
    for signal in found[np.argmin(np.min(distances, axis=1))]:
        again = gradient @ signal / (signal @ signal)
        np.testing.assert_allclose(
            sent(again, weights, np.argmin(signal)), signal, atol=1e-7
        )


@pytest.mark.parametrize("margin", (-4.6, 13.7))
def test_the_longest_and_the_shortest_lengths_are_found(margin):
    """Nearly sqrt(2), of a client that is sure and wrong; 1.6e-6, of one that is right.

    Two classes: the derivative by the margin is -1 / (1 + e^m), and by each logit so
    much, with either sign.
    """
    inputs = np.array([1.0, 0.5])
    weights = np.array([[margin, 0.0], [0.0, 0.0]])
    true = sent(inputs, weights, 0)
    assert np.linalg.norm(true) == pytest.approx(2**0.5 / (1 + np.exp(margin)))
    found = np.asarray(lengths(np.outer(inputs, true), weights))
    distances = np.linalg.norm(found - true, axis=-1)
    assert np.min(distances) < 1e-6 * np.linalg.norm(true)


def test_of_two_lengths_that_fit_both_are_listed():
    """Two classes: u = -y / (1 + e^u) has two solutions (R-GAP, section 3.2)."""
    # The derivative by the margin m is -1 / (1 + e^m), and <g, W> is m times it.
    margins = (-0.3, None)
    value = -margins[0] / (1 + np.exp(margins[0]))
    candidates = np.linspace(0.01, 20, 200_000)
    assert not np.any(np.abs(-candidates / (1 + np.exp(candidates)) - value) < 1e-6)
    # A margin above 0 has another one with the same product.
    margin = 0.5
    product = -margin / (1 + np.exp(margin))
    differences = -candidates / (1 + np.exp(candidates)) - product
    crossings = candidates[:-1][differences[:-1] * differences[1:] < 0]
    assert len(crossings) == 2
    inputs = np.array([1.0, 0.0])
    weights = np.array([[margin, 0.0], [0.2, -0.4]])
    found = np.asarray(lengths(np.outer(inputs, sent(inputs, weights, 0)), weights))
    expected = sorted(1 / (1 + np.exp(crossings)))
    own = np.min(found, axis=-1)
    by_sign = [sorted(-own[n]) for n in range(2)]
    assert any(np.allclose(one, expected, atol=1e-4) for one in by_sign)


def test_the_classifiers_input_follows_from_the_derivative():
    generator = np.random.default_rng(0)
    inputs, signal = generator.normal(size=4), generator.normal(size=3)
    weights = generator.normal(size=(4, 3))
    place = _below(np.outer(inputs, signal), weights, signal)
    np.testing.assert_allclose(place.value.mean, inputs[None])
    np.testing.assert_allclose(place.above.mean, (weights @ signal)[None])


def test_images_in_range_come_first_and_the_strongest_of_them():
    faint, strong = np.full((2, 2, 1), 0.2), np.full((2, 2, 1), 0.8)
    # Mean squares outside [0, 1]: .25 and 1; and 2.5e-5, which is rounding.
    below, above, almost = -0.5 + 0 * faint, 2 + 0 * faint, 1.005 + 0 * faint
    ranks = _implausibility(np.stack([faint, strong, below, above, almost]))
    np.testing.assert_allclose(ranks, [1 - 0.04, 1 - 0.64, 2.25, 3, 0], atol=1e-12)
    # A hundredth of a unit is the border.
    edge = _implausibility(np.array([[1.0099], [1.0101]]))
    assert edge[0] == 0 and edge[1] > 2


@pytest.mark.parametrize(
    ("losses", "chosen"),
    [([3, 1, 2], 1), ([1, 1, 2], 0), ([2, 1, 1], 1), ([np.inf, 5, np.inf], 1)],
)
def test_the_first_of_the_lowest_is_taken(losses, chosen):
    choices = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    found = _first(choices, np.array(losses, float))
    np.testing.assert_array_equal(found, choices[chosen])


def test_nothing_is_taken_of_what_cannot_be_compared():
    assert np.all(np.isnan(_first(np.ones((2, 3)), np.array([1.0, np.nan]))))
