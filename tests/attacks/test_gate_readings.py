"""A lock's gates off what is known above it, and how sure they are, against NumPy."""

import jax
import numpy as np
import pytest
from toys import quick_jit

from kljax.attacks.closed_form.gate_peeling import _by_gradient, _by_moments
from kljax.attacks.closed_form.layer_input import Estimate, through
from kljax.attacks.closed_form.transformer import (
    PROJECTIONS,
    VIT,
    Known,
    Sent,
    find_patches,
    find_tokens,
    folded,
    patch_gates,
    read,
)
from kljax.attacks.closed_form.walk import Place, Step, undo
from kljax.core.types import Gate
from kljax.models.chain import SIGMOID, Layer, convolution, dense

ROUNDING = 2.0**-24  # float32, relative
GENERATOR = np.random.default_rng(8)


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def estimate(*shape, low=0.1, high=0.9, doubt=1e-2):
    return Estimate(
        GENERATOR.uniform(low, high, shape), doubt * GENERATOR.uniform(0.1, 1, shape)
    )


def test_moments_are_the_gates_and_doubts_do_not_average_out():
    step = Step(Layer("c", convolution(1, 0), SIGMOID), (3, 3, 2), (2, 2, 2, 4), None)
    place = Place(estimate(2, 2, 2, 4), estimate(2, 2, 2, 4))
    place.value.variance[0, 0] = 1e9  # a unit of which nothing is known
    kernel = GENERATOR.normal(size=step.kernel)
    kernel[..., 2] = 0
    kernel[1:, ..., 3] = 0  # not all of it
    (scale, shift), deviation = _by_moments(step, place, {"c/kernel": kernel})
    out, doubts = (np.reshape(x, (8, 4)) for x in undo(SIGMOID, place.value))
    for f in range(4):
        mean = sum(out[:, f]) / 8
        spread = (sum((x - mean) ** 2 for x in out[:, f]) / 8) ** 0.5
        wide = max(spread, abs(mean))
        errors = [min(doubt**0.5, wide) for doubt in doubts[:, f]]
        assert wide in errors and min(errors) < wide
        along = sum(e * abs(x - mean) for e, x in zip(errors, out[:, f], strict=True))
        dead = f == 2
        assert scale[f] == pytest.approx(0 if dead else spread)
        assert shift[f] == pytest.approx(mean)
        assert deviation.scale[f] == pytest.approx(0 if dead else along / 8 / spread)
        assert deviation.shift[f] == pytest.approx(sum(errors) / 8)


def test_a_channel_that_gives_out_one_number_has_no_scale():
    step = Step(Layer("d", dense, SIGMOID), (2,), (2, 1), None)
    value = Estimate(np.full((3, 1), 0.7), np.full((3, 1), 1e-6))
    (scale, shift), deviation = _by_moments(
        step, Place(value, value), {"d/kernel": np.ones((2, 1))}
    )
    np.testing.assert_allclose(scale, 0, atol=1e-12)
    np.testing.assert_allclose(shift, np.log(0.7 / 0.3))
    assert np.all(np.isfinite(deviation.scale)) and deviation.shift > 0


@pytest.mark.parametrize("examples", (1, 2))
def test_gates_of_a_dense_layer_follow_from_its_bias_and_its_inputs(examples):
    step = Step(Layer("d", dense, SIGMOID), (5,), (5, 4), None)
    value = estimate(examples, 4, doubt=1e-3)
    above = estimate(examples, 4, low=-1, high=1, doubt=1e-3)
    above.mean[:, 1] = 0  # a silent channel
    inputs, gate = GENERATOR.random((examples, 5)), GENERATOR.uniform(0.5, 2, 4)
    signal = through(SIGMOID.slope, value, above)
    back = gate * signal.mean
    grads = {"d/kernel": inputs.T @ back, "d/bias": back.sum(axis=0)}
    params = {
        "d/kernel": GENERATOR.normal(size=(5, 4)),
        "d/bias": GENERATOR.normal(size=4),
    }
    (scale, shift), deviation = _by_gradient(step, Place(value, above), grads, params)
    out = undo(SIGMOID, value)
    inner = inputs @ params["d/kernel"] + params["d/bias"]
    for f in range(4):
        if f == 1:
            assert scale[f] == 0
            assert np.isinf(deviation.scale[f]) and np.isinf(deviation.shift[f])
            weights = 1 / out.variance[:, f]
            expected = weights @ out.mean[:, f] / weights.sum()
            assert shift[f] == pytest.approx(expected)
            continue
        assert scale[f] == pytest.approx(gate[f])
        total = signal.mean[:, f].sum()
        error = abs(gate[f] / total) * signal.variance[:, f].sum() ** 0.5
        weights = 1 / (out.variance[:, f] + (error * inner[:, f]) ** 2)
        told = out.mean[:, f] - gate[f] * inner[:, f]
        assert shift[f] == pytest.approx(weights @ told / weights.sum())
        assert deviation.scale[f] == pytest.approx(error)
        assert deviation.shift[f] == pytest.approx(weights.sum() ** -0.5)


# --- a vision transformer's patch embedding ----------------------------------------

TOKENS, WIDTH, PIXELS = 6, 4, 3


def upload():
    """Numbers that contradict each other, one channel dead."""
    draw = GENERATOR.normal
    sent = Sent(
        draw(size=(TOKENS, WIDTH)),
        draw(size=(WIDTH, WIDTH)),
        draw(size=(PIXELS, WIDTH)),
        draw(size=WIDTH),
    )
    sent.bias[2] = 0
    sent.tokens[0] *= 5  # the class token's is no patch's
    return sent, Known(
        draw(size=(PIXELS, WIDTH)), draw(size=WIDTH), draw(size=(TOKENS, WIDTH))
    )


@pytest.mark.parametrize("sign", (1, -1))
def test_an_upload_is_read_in_units_of_its_largest_derivative(sign):
    shapes = {
        VIT.positions: (TOKENS, WIDTH),
        VIT.token: (1, WIDTH),
        f"{VIT.patch}/kernel": (1, PIXELS, 1, WIDTH),
        f"{VIT.patch}/bias": (WIDTH,),
    }
    for name in PROJECTIONS:
        shapes[f"{VIT.attention}/{name}/kernel"] = (WIDTH, 2, WIDTH // 2)
    grads, params = (
        {path: GENERATOR.normal(size=shape) for path, shape in shapes.items()}
        for _ in range(2)
    )
    grads[VIT.positions][3, 1] = 20.0 * sign
    sent, known = quick_jit(lambda *trees: read(*trees, VIT))(grads, params)
    np.testing.assert_allclose(sent.tokens, grads[VIT.positions] / 20)
    products = sum(
        grads[path].reshape(WIDTH, -1) @ params[path].reshape(WIDTH, -1).T
        for path in (f"{VIT.attention}/{name}/kernel" for name in PROJECTIONS)
    )
    np.testing.assert_allclose(sent.products, products / 20)
    kernel = f"{VIT.patch}/kernel"
    np.testing.assert_allclose(sent.kernel, grads[kernel].reshape(PIXELS, WIDTH) / 20)
    np.testing.assert_allclose(sent.bias, grads[f"{VIT.patch}/bias"] / 20)
    np.testing.assert_allclose(known.kernel, params[kernel].reshape(PIXELS, WIDTH))
    np.testing.assert_allclose(known.bias, params[f"{VIT.patch}/bias"])
    rest = params[VIT.positions].copy()
    rest[0] += params[VIT.token][0]
    np.testing.assert_allclose(known.rest, rest)


def test_gates_of_a_patch_embedding_and_what_is_left_of_their_equations():
    sent, known = upload()
    gate, deviation, left = patch_gates(sent, known)
    patches = sent.tokens[1:]
    scale = np.zeros(WIDTH)
    for j in (0, 1, 3):
        scale[j] = sent.bias[j] / sum(patches[:, j])
        summed = sum(abs(patches[:, j])) / abs(sum(patches[:, j]))
        unsure = ROUNDING * abs(scale[j]) * summed
        assert deviation.scale[j] == pytest.approx(unsure)
    assert gate.scale[2] == deviation.scale[2] == 0
    np.testing.assert_allclose(gate.scale, scale)
    right = (sent.products - known.rest.T @ sent.tokens) * scale
    whole = missed = 0
    for i in range(WIDTH):
        rest = right[i] - scale[i] * known.kernel[:, i] @ sent.kernel
        offset = rest @ sent.bias / (sent.bias @ sent.bias)
        error = rest - offset * sent.bias
        missed, whole = missed + error @ error, whole + right[i] @ right[i]
        assert gate.shift[i] == pytest.approx(offset - known.bias[i] * scale[i])
        # Of three live channels one is spent on the offset.
        expected = (error @ error / 2 / (sent.bias @ sent.bias)) ** 0.5
        assert deviation.shift[i] == pytest.approx(expected)
    assert left == pytest.approx(missed / whole)


@pytest.mark.parametrize("cutoff", (1e-9, 0.5))
def test_tokens_are_a_grey_images_where_no_equation_reaches(cutoff):
    sent, known = upload()
    gate = Gate(*GENERATOR.normal(size=(2, WIDTH)))
    grey = known.rest.copy()
    for j in range(WIDTH):
        flat = 0.5 * sum(known.kernel[:, j]) + known.bias[j]
        grey[1:, j] += gate.scale[j] * flat + gate.shift[j]
    left = sent.tokens[1:].T
    right = sent.products.T - sent.tokens.T @ grey
    u, sizes, v = np.linalg.svd(left)
    kept = sizes > cutoff * sizes[0]
    assert kept.all() == (cutoff < 0.1)
    moved = sum(
        np.outer(v[n], u[:, n] @ right) / sizes[n] for n in np.flatnonzero(kept)
    )
    expected = grey.copy()
    expected[1:] += moved
    found, share = quick_jit(find_tokens)(sent, known, gate, cutoff)
    np.testing.assert_allclose(found, expected)
    missed = left @ moved - right
    np.testing.assert_allclose(share, np.sum(missed**2) / np.sum(right**2), atol=1e-12)


@pytest.mark.parametrize("pixels", (3, 7))
def test_patches_are_those_nearest_to_grey(pixels):
    """Fewer pixels than channels: least squares. More: the smallest step from grey."""
    draw = GENERATOR.normal
    known = Known(draw(size=(pixels, 4)), draw(size=4), draw(size=(TOKENS, 4)))
    gate, tokens = Gate(*draw(size=(2, 4))), draw(size=(TOKENS, 4))
    found, share = find_patches(tokens, known, gate)
    missed = whole = 0
    for n in range(1, TOKENS):
        kernel = known.kernel * gate.scale
        grey = np.full(pixels, 0.5) @ kernel + known.bias * gate.scale + gate.shift
        embedded = tokens[n] - known.rest[n] - grey
        away = np.linalg.pinv(kernel.T) @ embedded
        np.testing.assert_allclose(found[n - 1], 0.5 + away, rtol=1e-6)
        error = kernel.T @ away - embedded
        missed, whole = missed + error @ error, whole + embedded @ embedded
    np.testing.assert_allclose(share, missed / whole, atol=1e-12)


def test_patches_tile_an_image_row_by_row():
    patches = np.arange(6 * 12).reshape(6, 12)
    image = folded(patches, (4, 6, 3), 2)
    for n, patch in enumerate(patches):
        top, left = 2 * (n // 3), 2 * (n % 3)
        cut = image[top : top + 2, left : left + 2]
        np.testing.assert_array_equal(np.ravel(cut), patch)
