"""The equations below a lock, against all of them written out and stacked in NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import quick_jit

from kljax.attacks.closed_form import below_lock
from kljax.attacks.closed_form.below_lock import solve_below
from kljax.attacks.closed_form.layer_input import Estimate
from kljax.attacks.closed_form.walk import Place, Step
from kljax.core.types import Gate
from kljax.models.chain import SIGMOID, Layer, convolution
from kljax.models.norm_layers import batch_norm

SHAPE, KERNEL, OUT = (5, 4, 2), (3, 2, 2, 4), (3, 3, 4)
STEP = Step(Layer("c", convolution(2, 1), SIGMOID), SHAPE, KERNEL, None)
# What is believed of images beforehand, of equations, and of float32.
CENTRE, SPREAD, NEIGHBOURS, COLOURS = 0.5, 0.3, 0.95, 0.9
EXACT, ROUNDING = 1e-5, 2.0**-24
FEATURES, UNKNOWNS = KERNEL[-1], int(np.prod(SHAPE))
DEAD, NEGATIVE = 2, 1  # channels


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def covariance(height, width, channels):
    """Covariance of natural images' pixels, entry by entry."""
    places = [*itertools.product(range(height), range(width), range(channels))]
    found = np.empty((len(places), len(places)))
    for (a, one), (b, other) in itertools.product(enumerate(places), repeat=2):
        apart = abs(one[0] - other[0]) + abs(one[1] - other[1])
        alike = 1 if one[2] == other[2] else COLOURS
        found[a, b] = SPREAD**2 * NEIGHBOURS**apart * alike
    return found


@quick_jit
def of_the_image(kernel):
    """Jacobian of the layer's output by its input."""
    return jax.jacrev(lambda x: STEP.layer.linear(kernel, x))(jnp.zeros(SHAPE))


@quick_jit
def of_the_gradient(kernel, sent):
    """Jacobian of the weight gradient by the input, for what is sent back."""

    def gradient(x):
        return jax.grad(lambda k: jnp.sum(STEP.layer.linear(k, x) * sent))(kernel)

    return jax.jacfwd(gradient)(jnp.zeros(SHAPE))


def slowly(value, above, gate, grad, kernel, epsilon):
    """Stacks every equation, divided by its deviation, for image, d and m."""
    forward = np.reshape(of_the_image(kernel), (-1, FEATURES, UNKNOWNS))
    v, doubt_of_v = (x.reshape(-1, FEATURES) for x in value)
    a, doubt_of_a = (x.reshape(-1, FEATURES) for x in above)
    argument, slope = np.log(v / (1 - v)), v * (1 - v)
    unsure = (doubt_of_v + (ROUNDING * v) ** 2) / slope**2
    unsure += (4 * ROUNDING * (1 + np.abs(argument))) ** 2
    back = slope * a
    unsure_back = slope**2 * doubt_of_a + ((1 - 2 * v) * a) ** 2 * doubt_of_v
    unsure_back += (ROUNDING * back) ** 2
    patch = covariance(*KERNEL[:-1])
    rows, right, images = [], [], []

    def add(of_x, of_d, of_m, known):
        rows.append(np.concatenate([of_x, of_d, of_m]))
        right.append(known)

    unit, nothing = np.eye(FEATURES), np.zeros(FEATURES)
    live = [f for f in range(FEATURES) if gate.scale[f] != 0]
    for f in range(FEATURES):
        w = kernel[..., f].ravel()
        depth = np.sqrt(w @ patch @ w)
        # Weakly: d is about as large as expected, m about 0.
        add(np.zeros(UNKNOWNS), 2 / depth * unit[f], nothing, 2)
        add(np.zeros(UNKNOWNS), nothing, 0.1 / depth * unit[f], 0)
        if f not in live:
            continue
        scale = gate.scale[f]
        n = (argument[:, f] - gate.shift[f]) / scale
        for q in range(len(n)):
            spread = depth * np.sqrt(unsure[q, f] / scale**2 + EXACT**2)
            add(forward[q, f] / spread, -n[q] / spread * unit[f], -unit[f] / spread, 0)
        along = n * np.mean(back[:, f] * n)
        signal = back[:, f] - np.mean(back[:, f]) - along
        noise = unsure_back[:, f] + (ROUNDING * signal) ** 2
        noise += (10 * epsilon / depth**2 * along) ** 2
        noise = scale**2 * (CENTRE**2 + SPREAD**2) * np.sum(noise)
        g = grad[..., f]
        spread = np.sqrt(noise + EXACT**2 * depth**2 * np.mean(g**2))
        sent = np.zeros(OUT)
        sent[..., f] = scale * signal.reshape(OUT[:-1])
        backward = np.asarray(of_the_gradient(kernel, sent))[..., f, :, :, :]
        backward = backward.reshape(-1, UNKNOWNS)
        for row, number in zip(backward, g.ravel(), strict=True):
            add(row / spread, -number / spread * unit[f], nothing, 0)
        images.append((f, backward, g.ravel()))
    believed = np.linalg.cholesky(np.linalg.inv(covariance(*SHAPE))).T
    zeros = np.zeros((UNKNOWNS, 2 * FEATURES))
    rows = np.concatenate([rows, np.concatenate([believed, zeros], axis=1)])
    right = np.concatenate([right, believed @ np.full(UNKNOWNS, CENTRE)])
    found = np.linalg.lstsq(rows, right, rcond=None)[0]
    x, d = found[:UNKNOWNS], found[UNKNOWNS:][:FEATURES]
    untold = sum(np.sum((rows @ x - d[f] * g) ** 2) for f, rows, g in images)
    told = sum(np.sum((d[f] * g) ** 2) for f, _, g in images)
    return ((x - x.min()) / np.ptp(x)).reshape(SHAPE), d, untold / told


# Doubts of values and of signals, the gradient's size, the norm's epsilon.
CASES = {
    "all is doubtful": (1e-3, 1e-3, 1.0, 0.0),
    "as exact as anything is": (1e-12, 1e-14, 1.0, 0.0),
    "rounding alone": (0.0, 0.0, 1e-5, 0.0),
    "an epsilon is missed": (1e-12, 1e-14, 1.0, 1e-5),
}


@pytest.mark.parametrize("case", CASES)
def test_the_solution_is_that_of_all_equations(case):
    """They contradict each other, so that each weight matters."""
    of_value, of_above, size, epsilon = CASES[case]
    generator = np.random.default_rng(4)
    value = (
        generator.uniform(0.2, 0.8, (1, *OUT)),
        of_value * generator.random((1, *OUT)),
    )
    above = (generator.normal(size=(1, *OUT)), of_above * generator.random((1, *OUT)))
    gate = Gate(generator.uniform(0.5, 2, FEATURES), generator.normal(size=FEATURES))
    gate.scale[DEAD], gate.scale[NEGATIVE] = 0, -0.7
    kernel = generator.normal(size=KERNEL)
    grad = size * generator.normal(size=KERNEL)
    found = solving(value, above, gate, grad, kernel, epsilon)
    image, deviation, residual = slowly(value, above, gate, grad, kernel, epsilon)
    np.testing.assert_allclose(found.image, image, atol=1e-5)
    np.testing.assert_allclose(found.deviation, deviation, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found.residual, residual, rtol=1e-5)


def test_a_scale_is_taken_for_right_unless_it_is_said():
    generator = np.random.default_rng(1)
    value, above = (
        Estimate(generator.uniform(0.2, 0.8, (1, *OUT)), np.full((1, *OUT), 1e-12))
        for _ in range(2)
    )
    gate = Gate(np.ones(FEATURES), np.zeros(FEATURES))
    kernel, grad = generator.normal(size=(2, *KERNEL))
    place = Place(value, above)
    unsaid = quick_jit(lambda: solve_below(STEP, place, gate, grad, kernel))()
    right = solving(value, above, gate, grad, kernel, 0.0)
    wrong = solving(value, above, gate, grad, kernel, 1.0)
    np.testing.assert_allclose(unsaid.image, right.image, atol=1e-6)
    assert np.max(np.abs(wrong.image - right.image)) > 1e-3


@quick_jit
def solving(value, above, gate, grad, kernel, epsilon):
    place = Place(Estimate(*value), Estimate(*above))
    return solve_below(STEP, place, gate, grad, kernel, epsilon)


def test_without_a_live_channel_nothing_is_claimed():
    value = np.full((1, *OUT), 0.4), np.zeros((1, *OUT))
    gate = Gate(np.zeros(FEATURES), np.zeros(FEATURES))
    found = solving(value, value, gate, np.ones(KERNEL), np.ones(KERNEL), 0.0)
    assert np.isnan(found.residual)


def test_the_epsilon_is_that_of_our_norms():
    spread = 1e-2
    with jax.enable_x64(False):
        out = batch_norm(1, affine=False)(jnp.array([[spread], [-spread]]))
    epsilon = (spread / float(out[0, 0])) ** 2 - spread**2
    np.testing.assert_allclose(epsilon, below_lock.EPSILON, rtol=1e-4)
