"""A layer's input from its two sides, against the plainest form of the same."""

import jax
import numpy as np
import pytest
from toys import quick_jit

from kljax.attacks.closed_form import layer_input
from kljax.attacks.closed_form.layer_input import (
    ROUNDING,
    Estimate,
    backward_matrix,
    forward_matrix,
    pairing,
    solve,
)
from kljax.models.chain import Layer, convolution, dense

GENERATOR = np.random.default_rng(3)
# name -> layer, kernel shape, input shape, output shape
LAYERS = {
    "strided": (Layer("c", convolution(2, 1)), (3, 3, 2, 3), (5, 4, 2), (3, 2, 3)),
    "wide": (Layer("c", convolution(1, 2)), (5, 5, 2, 1), (4, 4, 2), (4, 4, 1)),
    # One equation of the gradient for nine positions.
    "narrow": (Layer("c", convolution(1, 0)), (1, 1, 2, 1), (3, 3, 2), (3, 3, 1)),
    "dense": (Layer("d", dense), (6, 4), (6,), (4,)),
}


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=LAYERS)
def case(request):
    layer, kernel, size, out = LAYERS[request.param]
    table = pairing(layer, kernel, size[:-1])
    draw = GENERATOR.standard_normal
    return layer, table, draw(kernel), draw(size), draw(out)


def plain_rows(layer, kernel, x, signal):
    """Jacobians of the layer, and of its weight gradient, by its whole input."""

    def weight_gradient(x):
        return jax.grad(lambda k: (layer.linear(k, x) * signal).sum())(kernel)

    def both(x):
        forward = jax.jacrev(lambda x: layer.linear(kernel, x))(x)
        return forward, jax.jacfwd(weight_gradient)(x), weight_gradient(x)

    forward, backward, grad = quick_jit(both)(x)
    return (
        np.reshape(forward, (signal.size, x.size)),
        np.reshape(backward, (kernel.size, x.size)),
        np.asarray(grad),
    )


def test_matrices_are_jacobians(case):
    layer, table, kernel, x, signal = case
    forward, backward, _ = plain_rows(layer, kernel, x, signal)
    features = kernel.shape[-1]
    found = forward_matrix(table, kernel)
    np.testing.assert_allclose(found.reshape(forward.shape), forward, atol=1e-12)
    found = backward_matrix(table, signal.reshape(-1, features))  # [M, F, P]
    each = np.einsum("mfp,cd->mcfpd", found, np.eye(x.shape[-1]))
    np.testing.assert_allclose(each.reshape(backward.shape), backward, atol=1e-12)


@pytest.mark.parametrize("rounding", (ROUNDING, 0.05))
def test_the_solution_is_that_of_the_stacked_equations(case, rounding, monkeypatch):
    """All equations, each divided by its deviation, and the expectation of x.

    With float32's rounding beside doubtful signals; and with a coarse one alone, of
    signals that are exact, and of the gradient.
    """
    monkeypatch.setattr(layer_input, "ROUNDING", rounding)
    exact = rounding > ROUNDING
    layer, table, kernel, x, signal = case
    features, channels = kernel.shape[-1], x.shape[-1]
    forward, backward, grad = plain_rows(layer, kernel, x, signal)
    # Equations that contradict each other, so that their weights matter.
    out = forward @ x.ravel() + GENERATOR.standard_normal(len(forward))
    trust = GENERATOR.uniform(0.1, 3, len(forward))
    blur = (not exact) * GENERATOR.uniform(0.01, 0.3, signal.size)
    grad = grad + 0.1 * GENERATOR.standard_normal(grad.shape)
    centre, spread = 0.3, 0.7

    def rows(values):
        return values.reshape(-1, features)

    found = quick_jit(lambda *args: solve(*args))(
        table,
        forward_matrix(table, kernel),
        Estimate(rows(out), rows(trust)),
        Estimate(rows(signal), rows(blur)),
        grad,
        centre,
        spread,
    )
    # The deviation of a gradient's entry: of the signals it is the sum of.
    power = (centre**2 + spread**2) * (rows(blur) + (rounding * rows(signal)) ** 2)
    noise = np.einsum("qmp,qf->mf", table, power)[:, None].repeat(channels, 1)
    noise += np.mean((rounding * grad.reshape(-1, channels, features)) ** 2, 1)[:, None]
    seen = noise.ravel() > 0
    stacked = np.concatenate(
        [
            forward / np.sqrt(trust)[:, None],
            (backward / np.sqrt(noise.ravel())[:, None])[seen],
            np.eye(x.size) / spread,
        ]
    )
    known = np.concatenate(
        [
            out / np.sqrt(trust),
            (grad.ravel() / np.sqrt(noise.ravel()))[seen],
            np.full(x.size, centre / spread),
        ]
    )
    expected, *_ = np.linalg.lstsq(stacked, known, rcond=None)
    np.testing.assert_allclose(found.x.mean.ravel(), expected, rtol=1e-8, atol=1e-8)
    variance = np.diag(np.linalg.inv(stacked.T @ stacked))
    np.testing.assert_allclose(found.x.variance.ravel(), variance, rtol=1e-7)
    rank = x.size - variance.sum() / spread**2
    np.testing.assert_allclose(found.rank, rank, rtol=1e-9)
    left = backward @ expected - grad.ravel()
    np.testing.assert_allclose(found.residual, left @ left / np.sum(grad**2), rtol=1e-6)


@pytest.mark.slow
def test_what_no_equation_reaches_stays_where_it_is_expected():
    layer = Layer("d", dense)
    table = pairing(layer, (3, 2), ())
    with jax.enable_x64(True):
        found = quick_jit(solve)(
            table,
            forward_matrix(table, np.zeros((3, 2))),
            Estimate(np.zeros((1, 2)), np.ones((1, 2))),
            Estimate(np.zeros((1, 2)), np.zeros((1, 2))),
            np.zeros((3, 2)),
            0.3,
            0.7,
        )
    np.testing.assert_allclose(found.x.mean, np.full((1, 3), 0.3))
    np.testing.assert_allclose(found.x.variance, np.full((1, 3), 0.49))
    np.testing.assert_allclose(found.rank, 0, atol=1e-12)
