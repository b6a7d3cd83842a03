"""What a classifier was fed, for each example of a batch."""

import functools
import itertools

import jax
import numpy as np
import pytest
from toys import quick_jit

from kljax.attacks.closed_form.features import (
    batch_inputs,
    classifier_inputs,
    levenberg_marquardt,
)
from kljax.models.losses import cross_entropy, squared_error

WIDTH, CLASSES = 48, 10
DISTINCT = ((4, 7), (0, 3, 5, 9), (0, 1, 2, 3, 4, 5, 6, 8))
find = {
    loss: quick_jit(lambda *args, loss=loss: batch_inputs(*args, loss))
    for loss in (cross_entropy, squared_error)
}


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def batch(labels, seed=0, loss=cross_entropy, limit=0.3, alike=False):
    """Draws inputs and a classifier; gives them, and the client's float32 gradient."""
    generator = np.random.default_rng(seed)
    inputs = generator.random((len(labels), WIDTH))
    inputs = np.repeat(inputs[:1], len(labels), axis=0) if alike else inputs
    kernel = generator.uniform(-limit, limit, (WIDTH, CLASSES))
    bias = generator.uniform(-limit, limit, CLASSES)
    inputs, kernel, bias = (np.float32(x) for x in (inputs, kernel, bias))
    targets = np.eye(CLASSES, dtype=np.float32)[[*labels]]
    with jax.enable_x64(False):
        grads = jax.grad(lambda k, b: loss(inputs @ k + b[None], targets), (0, 1))(
            kernel, bias
        )
    arrays = (*grads, kernel, bias, targets)
    return inputs, tuple(np.asarray(array, np.float64) for array in arrays)


@pytest.mark.slow
@pytest.mark.parametrize("loss", find)
@pytest.mark.parametrize("labels", DISTINCT)
@pytest.mark.parametrize("seed", (0, 1))
def test_inputs_are_found_and_how_sure_they_are(loss, labels, seed):
    truth, sent = batch(labels, seed, loss)
    found = find[loss](*sent)
    errors = np.abs(found.inputs.mean - truth)
    assert np.median(errors) < 1e-5 and found.residual < 1e-11
    assert np.mean(errors <= 3 * np.sqrt(found.inputs.variance)) > 0.98
    logits = truth @ sent[2] + sent[3]
    signals = jax.grad(loss)(logits, sent[4])
    np.testing.assert_allclose(found.signals.mean, signals, atol=1e-5)


@pytest.mark.parametrize("noise", (0.0, 1e-4))
def test_how_sure_it_is_follows_from_the_slopes_at_what_was_found(noise):
    """Its formula with derivatives by differences, entry by entry."""
    _, sent = batch((4, 7))
    disturb = np.random.default_rng(1).standard_normal(sent[0].shape)
    sent = (sent[0] + noise * disturb, *sent[1:])
    found = find[cross_entropy](*sent)
    kernel_grad, bias_grad, kernel, bias, targets = sent
    grads = np.concatenate([kernel_grad, bias_grad[None]])
    basis = np.linalg.svd(grads, full_matrices=False)[0][:, :2]
    logits_of = basis.T @ np.concatenate([kernel, bias[None]])
    seen = basis.T @ grads
    mixing = np.concatenate([found.inputs.mean, np.ones((2, 1))], axis=1) @ basis

    def signals(mixing):
        powers = np.exp(mixing @ logits_of)
        return (powers / powers.sum(axis=1, keepdims=True) - targets) / 2

    def misfit(mixing):
        missed = (mixing.T @ signals(mixing) - seen) / np.abs(seen).max()
        return np.concatenate([missed.ravel(), mixing @ basis[-1] - 1])

    def slopes(function, step=1e-6):
        away = [step * np.eye(4)[n].reshape(2, 2) for n in range(4)]
        pairs = [(function(mixing + by), function(mixing - by)) for by in away]
        return np.stack([np.ravel(a - b) for a, b in pairs], axis=1) / (2 * step)

    rounding, slope = 2.0**-24, slopes(misfit)
    left = np.sum(misfit(mixing) ** 2) / (2 * (CLASSES + 1 - 2))
    spread = (rounding**2 + left) * np.linalg.inv(slope.T @ slope)
    inverse = np.linalg.pinv(signals(mixing))
    for i, f in np.ndindex(2, WIDTH):
        own = spread[2 * i : 2 * i + 2, 2 * i : 2 * i + 2]
        doubt = basis[f] @ own @ basis[f]
        doubt += sum((rounding * grads[f, c] * inverse[c, i]) ** 2 for c in range(10))
        np.testing.assert_allclose(found.inputs.variance[i, f], doubt, rtol=1e-3)
    by_mixing = slopes(signals).reshape(2, CLASSES, 4)
    for i, c in np.ndindex(2, CLASSES):
        doubt = by_mixing[i, c] @ spread @ by_mixing[i, c]
        doubt += (rounding * found.signals.mean[i, c]) ** 2
        np.testing.assert_allclose(found.signals.variance[i, c], doubt, rtol=1e-3)
    missed = basis @ mixing.T @ signals(mixing) - grads
    share = np.sum(missed**2) / np.sum(grads**2)
    # An input's last one is exact here, and nearly so there. Without noise all that is
    # left is rounding, which a processor does in its own way.
    np.testing.assert_allclose(found.residual, share, rtol=1e-2, atol=rounding**2)


def test_it_is_computed_in_float64_whatever_it_is_given():
    _, sent = batch((4, 7))
    exact = find[cross_entropy](*sent).inputs.mean
    with jax.enable_x64(False):
        arrays = [np.float32(array) for array in sent]
        found = quick_jit(functools.partial(classifier_inputs, loss=cross_entropy))(
            *arrays
        )
        assert found.inputs.mean.dtype == np.float32
        assert found.residual < 1e-11  # far below what float32 leaves
    np.testing.assert_allclose(found.inputs.mean, exact, rtol=1e-6, atol=1e-6)


def test_examples_of_one_label_come_in_any_order():
    labels = (2, 2, 6)
    truth, sent = batch(labels)
    found = np.asarray(find[cross_entropy](*sent).inputs.mean)
    orders = itertools.permutations(range(3))
    errors = [np.abs(found[[*order]] - truth).max() for order in orders]
    assert min(errors) < 1e-3


def test_examples_that_are_alike_are_as_sure_as_they_say():
    """The same image twice, of one label: a gradient of rank 1."""
    truth, sent = batch((2, 2), alike=True)
    found = find[cross_entropy](*sent)
    errors = np.abs(found.inputs.mean - truth)
    unsure = np.sqrt(found.inputs.variance)
    told = np.isfinite(errors) & np.isfinite(unsure)
    assert told.mean() > 0.5
    assert np.all(errors[told] <= 3 * unsure[told] + 1e-5)


def test_wrong_labels_are_seen_in_the_residual():
    _, sent = batch((4, 7))
    right = find[cross_entropy](*sent).residual
    wrong = find[cross_entropy](*sent[:-1], np.eye(CLASSES)[[4, 1]]).residual
    assert wrong > 1e-3 > 1e6 * right


def test_noise_is_seen_in_the_residual():
    truth, sent = batch((4, 7))
    noise = np.random.default_rng(1).standard_normal(sent[0].shape)
    found = find[cross_entropy](sent[0] + 0.1 * noise, *sent[1:])
    assert found.residual > 0.1
    assert np.abs(found.inputs.mean - truth).mean() > 0.1


def test_a_gradient_of_zeros_says_nothing():
    _, sent = batch((4, 7))
    found = find[cross_entropy](*(0 * g for g in sent[:2]), *sent[2:])
    assert np.all(np.isnan(found.inputs.mean))


def test_as_many_examples_as_classes_are_refused():
    _, sent = batch(range(10))
    with pytest.raises(ValueError, match="at most 9 examples apart, got 10"):
        batch_inputs(*sent, cross_entropy)


def test_levenberg_marquardt_is_down_the_valley():
    """Rosenbrock's, from its usual start; and a start that is NaN stays where it is."""

    def misfit(x):
        return jax.numpy.stack([1 - x[0], 10 * (x[1] - x[0] ** 2)])

    x, cost = levenberg_marquardt(misfit, np.array([-1.2, 1.0]), 60)
    np.testing.assert_allclose(x, [1, 1], atol=1e-9)
    assert cost < 1e-18
    x, cost = levenberg_marquardt(misfit, np.array([np.nan, 1.0]), 5)
    assert np.isnan(cost)


def valley(x):
    return np.array([1 - x[0], 10 * (x[1] - x[0] ** 2), 0.3 * x[0] * x[1]])


def slope_of_valley(x):
    return np.array([[-1, 0], [-20 * x[0], 10], [0.3 * x[1], 0.3 * x[0]]])


@pytest.mark.parametrize("moves", (1, 2, 3, 6, 12))
def test_levenberg_marquardt_moves_like_the_textbooks(moves):
    """Damped by the diagonal, a fifth after a success and threefold after a failure."""
    x, damping, refused = np.array([-1.2, 2.0]), 1e-3, 0
    cost = np.sum(valley(x) ** 2)
    for _ in range(moves):
        slope = slope_of_valley(x)
        square = slope.T @ slope
        damped = square + damping * np.diag(np.diag(square))
        new = x - np.linalg.solve(damped, slope.T @ valley(x))
        if np.sum(valley(new) ** 2) < cost:
            x, cost, damping = new, np.sum(valley(new) ** 2), damping / 5
        else:
            damping, refused = 3 * damping, refused + 1
    found, lowest = levenberg_marquardt(
        lambda x: jax.numpy.stack(
            [1 - x[0], 10 * (x[1] - x[0] ** 2), 0.3 * x[0] * x[1]]
        ),
        np.array([-1.2, 2.0]),
        moves,
    )
    np.testing.assert_allclose(found, x, rtol=1e-7)
    np.testing.assert_allclose(lowest, cost, rtol=1e-7)
    assert (refused > 0) == (moves > 1)


def test_a_flat_direction_is_not_moved_along():
    """Where nothing depends on an unknown, the damping alone keeps it in place."""
    x, cost = levenberg_marquardt(lambda x: x[:1] - 3, np.array([0.0, 7.0]), 20)
    np.testing.assert_allclose(x, [3, 7], atol=1e-9)
    assert cost < 1e-15
