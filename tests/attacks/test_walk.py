"""Down a chain of layers, step by step against NumPy."""

import jax
import numpy as np
import pytest
from toys import quick_jit, setting, threat

from kljax.attacks.closed_form.features import batch_inputs
from kljax.attacks.closed_form.layer_input import (
    Estimate,
    forward_matrix,
    pairing,
    solve,
    through,
)
from kljax.attacks.closed_form.walk import (
    Place,
    Step,
    below_batch,
    below_classifier,
    down,
    place_at,
    side_by_side,
    steps_of,
    undo,
    walk_down,
)
from kljax.core.inputs import images_of
from kljax.defences import none
from kljax.models import NETWORKS, LeNet, from_nnx
from kljax.models.chain import SIGMOID, Layer, convolution, dense, leaky_relu
from kljax.models.losses import cross_entropy

ROUNDING = 2.0**-24  # float32, relative
GENERATOR = np.random.default_rng(5)


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def estimate(*shape, low=0.2, high=0.8, doubt=1e-3):
    return Estimate(
        GENERATOR.uniform(low, high, shape), doubt * GENERATOR.uniform(0.1, 1, shape)
    )


def sigmoid_undone(value, variance, least):
    """Finds one argument and its variance; `least` is how near 0 it may be."""
    inside = min(max(value, least), 1 - ROUNDING / 4)
    mean, slope = np.log(inside) - np.log1p(-inside), inside * (1 - inside)
    doubt = variance + (ROUNDING * inside) ** 2 + (value - inside) ** 2
    return mean, doubt / slope**2 + (4 * ROUNDING * (1 + abs(mean))) ** 2


TINY = float(np.finfo(np.float32).tiny)


@pytest.mark.parametrize(
    ("value", "variance", "least"),
    [
        (0.3, 0.0, TINY),
        (0.3, 0.02, ROUNDING / 4),
        (1.0, 0.0, TINY),  # saturated
        (1.2, 0.01, ROUNDING / 4),
        (1e-20, 0.0, TINY),  # read: float32 tells it from 0
        (1e-20, (3.9 * ROUNDING * 1e-20) ** 2, TINY),
        (1e-20, (4.1 * ROUNDING * 1e-20) ** 2, ROUNDING / 4),  # solved for
        (0.0, 0.0, TINY),
        (-0.1, 0.01, ROUNDING / 4),
    ],
)
def test_an_activation_is_undone_as_far_as_float32_goes(value, variance, least):
    found = undo(SIGMOID, Estimate(np.array([value]), np.array([variance])))
    expected = sigmoid_undone(value, variance, least)
    np.testing.assert_allclose([found.mean[0], found.variance[0]], expected, rtol=1e-8)


def test_an_activation_without_bounds_is_undone_everywhere():
    value = Estimate(np.array([-3.0, 2.0]), np.array([0.1, 0.2]))
    found = undo(leaky_relu(0.5), value)
    np.testing.assert_allclose(found.mean, [-6, 2])
    np.testing.assert_allclose(found.variance, [0.4, 0.2], rtol=1e-10)


def test_a_derivative_goes_through_an_activation_with_its_doubt():
    value, above = estimate(2, 3), estimate(2, 3, low=-1, high=1)
    found = through(SIGMOID.slope, value, above)
    v, a = value.mean, above.mean
    slope, bend = v * (1 - v), 1 - 2 * v
    np.testing.assert_allclose(found.mean, slope * a)
    doubt = slope**2 * above.variance + (bend * a) ** 2 * value.variance
    np.testing.assert_allclose(found.variance, doubt + (ROUNDING * slope * a) ** 2)
    # Of numbers that are exact nothing but rounding is left.
    exact = through(SIGMOID.slope, *(Estimate(x, 0 * x) for x in (v, a)))
    np.testing.assert_allclose(exact.variance, (ROUNDING * slope * a) ** 2)


def test_the_walk_begins_with_rounding():
    weights, signal = GENERATOR.normal(size=(4, 3)), GENERATOR.normal(size=3)
    x = GENERATOR.random(4).astype(np.float32).astype(np.float64)
    begun = (
        place_at(x, weights, signal),
        below_classifier(
            Step(Layer("fc", dense), (4,), (4, 3), None),
            # A client's gradients have float32's rounding, which x has not.
            {"fc/kernel": np.outer(x, signal) * (1 + 1e-9), "fc/bias": signal},
            {"fc/kernel": weights},
        ),
    )
    for value, above in begun:
        np.testing.assert_array_equal(value.mean, x[None])
        np.testing.assert_allclose(value.variance, (ROUNDING * x[None]) ** 2)
        sent = [sum(weights[i, k] * signal[k] for k in range(3)) for i in range(4)]
        np.testing.assert_allclose(above.mean, [sent])
        doubt = [
            sum((weights[i, k] * signal[k]) ** 2 for k in range(3)) for i in range(4)
        ]
        np.testing.assert_allclose(above.variance, [ROUNDING**2 * np.array(doubt)])


def test_the_walk_of_a_batch_begins_with_what_its_classifier_was_fed():
    x, weights, bias = (GENERATOR.normal(size=s) for s in ((2, 6), (6, 4), 4))
    targets = np.eye(4)[[3, 0]]
    signals = np.asarray(jax.grad(cross_entropy)(x @ weights + bias, targets))
    step = Step(Layer("fc", dense), (6,), (6, 4), None)
    grads = {"fc/kernel": x.T @ signals, "fc/bias": signals.sum(axis=0)}
    params = {"fc/kernel": weights, "fc/bias": bias}
    place, left = quick_jit(lambda *a: below_batch(step, *a, cross_entropy))(
        grads, params, targets
    )
    np.testing.assert_allclose(place.value.mean, x, atol=1e-6)
    np.testing.assert_allclose(place.above.mean, signals @ weights.T, atol=1e-6)
    assert left < 1e-15
    # No number of the signals is exact, and the weights are.
    arrays = (*grads.values(), *params.values(), targets)
    found = quick_jit(lambda *a: batch_inputs(*a, cross_entropy))(*arrays)
    doubts = [
        [sum(v[c] * weights[f, c] ** 2 for c in range(4)) for f in range(6)]
        for v in found.signals.variance
    ]
    np.testing.assert_allclose(place.above.variance, doubts, rtol=1e-6)
    assert np.min(doubts) > 0
    for one, other in zip(place.value, found.inputs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_examples_meet_their_own_outputs_alone():
    table = GENERATOR.normal(size=(3, 2, 4))
    whole = side_by_side(table, 2)
    assert whole.shape == (6, 2, 8)
    for m in range(2):
        np.testing.assert_array_equal(whole[:, m], np.kron(np.eye(2), table[:, m]))


@pytest.mark.parametrize("below", (None, SIGMOID, leaky_relu(0.5)))
@pytest.mark.parametrize("bias", (True, False))
def test_a_layer_is_walked_through(below, bias):
    """Two examples: solved together, and what comes back through the layer."""
    shape, kernel = (3, 3, 2), GENERATOR.normal(size=(2, 2, 2, 3))
    layer = Layer("c", convolution(1, 0), SIGMOID)
    step = Step(layer, shape, kernel.shape, below)
    place = Place(estimate(2, 2, 2, 3), estimate(2, 2, 2, 3, low=-1, high=1))
    params, grads = (
        {"c/kernel": kernel},
        {"c/kernel": GENERATOR.normal(size=(2, 2, 2, 3))},
    )
    if bias:
        params["c/bias"] = GENERATOR.normal(size=3)
    walk = quick_jit(lambda *rest: down(step, *rest))
    found, solution = walk(place, grads, params)
    table = pairing(layer, kernel.shape, shape[:-1])
    whole = np.stack([np.kron(np.eye(2), table[:, m]) for m in range(4)], axis=1)
    out = undo(SIGMOID, place.value)
    signal = through(SIGMOID.slope, *place)
    out, signal = (
        Estimate(*(np.asarray(part).reshape(-1, 3) for part in each))
        for each in (out, signal)
    )
    out = out._replace(mean=out.mean - params.get("c/bias", np.zeros(3)))
    centre, spread = {None: (0.5, 0.5), SIGMOID: (0.5, 0.5)}.get(below, (0.0, 10.0))
    expected = quick_jit(solve)(
        whole,
        forward_matrix(whole, kernel),
        out,
        signal,
        grads["c/kernel"],
        centre,
        spread,
    )
    for one, other in zip(solution.x, expected.x, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-8)
    np.testing.assert_allclose(solution.residual, expected.residual, rtol=1e-8)
    for one, other in zip(found.value, expected.x, strict=True):
        np.testing.assert_allclose(one, np.reshape(other, (2, *shape)), rtol=1e-8)

    def back(kernel, signal):
        """Sends signals [2, 2, 2, 3] back through the kernel by loops."""
        sent = np.zeros((2, *shape))
        for b, i, j, k, m in np.ndindex(2, 2, 2, 2, 2):
            sent[b, i + k, j + m] += kernel[k, m] @ signal[b, i, j]
        return sent

    parts = [np.reshape(part, (2, 2, 2, 3)) for part in signal]
    np.testing.assert_allclose(found.above.mean, back(kernel, parts[0]))
    np.testing.assert_allclose(found.above.variance, back(kernel**2, parts[1]))


def test_the_walk_goes_from_the_last_layer_to_the_first():
    widths, steps, below = (3, 4, 5), [], None
    for n in range(2):
        layer = Layer(f"d{n}", dense, SIGMOID)
        steps.append(Step(layer, widths[n : n + 1], widths[n : n + 2], below))
        below = SIGMOID
    params, grads = (
        {f"d{n}/kernel": GENERATOR.normal(size=widths[n : n + 2]) for n in range(2)}
        for _ in range(2)
    )
    place = Place(estimate(1, 5), estimate(1, 5, low=-1, high=1))
    walk = quick_jit(lambda *rest: walk_down(steps, *rest))
    found, residues = walk(place, grads, params)
    for step in reversed(steps):
        one = quick_jit(lambda *rest, step=step: down(step, *rest))
        place, solution = one(place, grads, params)
        path = step.layer.path
        np.testing.assert_allclose(residues.residuals[path], solution.residual)
        share = solution.rank / len(params[f"{path}/kernel"])
        np.testing.assert_allclose(residues.ranks[path], share)
    jax.tree.map(np.testing.assert_allclose, found, place)


def test_steps_have_the_shapes_of_the_network():
    shape = (16, 16, 3)
    model = from_nnx(lambda rngs: LeNet(5, image_shape=shape, rngs=rngs))
    here = setting(
        threat(),
        none(),
        model=model,
        inputs=images_of(shape),
        chain=NETWORKS["lenet"].chain,
    )
    steps = steps_of(here)
    params, _ = here.task.shapes()
    assert [step.layer for step in steps] == list(here.task.chain)
    assert steps[0].shape == shape and steps[0].below is None
    for step, after in zip(steps, steps[1:], strict=False):
        out = jax.eval_shape(
            step.layer.linear,
            params[f"{step.layer.path}/kernel"],
            jax.ShapeDtypeStruct(step.shape, np.float32),
        )
        assert after.shape in (out.shape, (out.size,))
        assert after.below is step.layer.activation
    assert len(steps[-1].shape) == 1 and steps[-1].kernel[0] == steps[-1].shape[0]
