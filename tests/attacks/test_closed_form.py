"""Closed-form attacks, on numbers worked out beforehand."""

import jax
import numpy as np
import pytest
from poison import differences, poisoned
from toys import (
    locked_update,
    quick_jit,
    random_images,
    random_weights,
    setting,
    threat,
    toy_model,
)
from victims import drowned, filled

from kljax.attacks import dense_input, dense_layer, private_key_from_lock_grads
from kljax.core.inputs import images_of
from kljax.core.types import Private, Public
from kljax.defences import none
from kljax.federated.clients import one_step
from kljax.models import Dense, from_nnx
from kljax.models.losses import LOSSES, cross_entropy
from kljax.threat import observe

GENERATOR = np.random.default_rng(0)
INPUTS = GENERATOR.standard_normal((3, 6)).astype(np.float32)  # [B, F]
SIGNALS = GENERATOR.standard_normal((3, 4)).astype(np.float32)  # [B, C]


# --- the formula -----------------------------------------------------------------


@pytest.mark.parametrize("scale", (1.0, 1e-30, 1e20))
@pytest.mark.parametrize("live", (4, 1))
def test_one_example_is_exact_at_any_scale(scale, live):
    """1e-30 squared is zero in float32, and 1e20 squared is infinite."""
    signal = np.where(np.arange(4) < live, SIGNALS[0], 0) * np.float32(scale)
    found = dense_input(np.outer(INPUTS[0], signal), signal)
    np.testing.assert_allclose(found, INPUTS[0], rtol=1e-5)


def test_several_examples_give_the_mean_weighted_by_their_signals():
    found = dense_input(INPUTS.T @ SIGNALS, SIGNALS.sum(axis=0))
    total = SIGNALS.sum(axis=0)
    weights = SIGNALS @ total / (total @ total)
    assert weights.sum() == pytest.approx(1, rel=1e-5)
    np.testing.assert_allclose(found, weights @ INPUTS, rtol=1e-4)


def test_it_is_the_least_squares_solution():
    kernel = GENERATOR.standard_normal((6, 4)).astype(np.float32)
    expected, *_ = np.linalg.lstsq(SIGNALS[0][:, None], kernel.T, rcond=None)
    np.testing.assert_allclose(dense_input(kernel, SIGNALS[0]), expected[0], rtol=1e-4)


def test_no_signal_gives_nothing():
    assert np.all(np.isnan(dense_input(np.zeros((6, 4)), np.zeros(4))))


def test_the_private_key_is_the_input_of_the_locks_first_layers():
    update = locked_update(2)  # the sum over two examples does not hide it
    found = private_key_from_lock_grads(update.lock_grads)
    np.testing.assert_allclose(found, update.private.secret, rtol=1e-5)


# --- the attack ------------------------------------------------------------------

IMAGE_SHAPE = (8, 8, 3)
CLASSES = 4
GREY = 1 / 12  # mean squared error of a grey image: of a uniform number on [0, 1)
NETWORKS = {"linear": ((), "fc"), "one hidden layer": ((5,), "layers/0")}


def attacked(
    widths, layer, label=2, loss=cross_entropy, dead=False, change=lambda seen: seen
):
    """Runs a client on a dense network, and the attack on its update, changed."""
    model = from_nnx(
        lambda rngs: Dense(CLASSES, image_shape=IMAGE_SHAPE, widths=widths, rngs=rngs)
    )
    params, stats = random_weights(model, scale=0.1)
    if dead:
        params["fc/kernel"] = np.zeros_like(params["fc/kernel"])
    images = random_images(1, *IMAGE_SHAPE)
    targets = np.eye(CLASSES, dtype=np.float32)[[label]]
    step = quick_jit(one_step(model, loss, none(), train=False))
    update = step(jax.random.key(0), Public(params), stats, Private(), images, targets)
    model_threat = threat()
    attack = dense_layer(
        setting(
            model_threat,
            none(),
            model=model,
            inputs=images_of(IMAGE_SHAPE),
            num_classes=CLASSES,
            sites=(),
        ),
        layer,
    )
    return images, attack(jax.random.key(1), observe(model_threat, change(update)))


@pytest.mark.parametrize(("widths", "layer"), NETWORKS.values(), ids=NETWORKS)
def test_a_dense_network_gives_its_image_away(widths, layer):
    images, found = attacked(widths, layer)
    np.testing.assert_allclose(found.inputs, images, atol=1e-5)
    np.testing.assert_array_equal(found.labels, [2])
    assert found.finite and abs(found.loss) < 1e-10
    assert found.labels.dtype == np.int32
    assert found.numbers["evaluations"] == 0


def test_the_image_is_given_away_under_another_loss():
    images, found = attacked(*NETWORKS["linear"], loss=LOSSES["squared_error"])
    np.testing.assert_allclose(found.inputs, images, atol=1e-5)


def test_a_zero_gradient_is_told_apart_from_a_success():
    _, found = attacked(*NETWORKS["one hidden layer"], dead=True)
    assert not found.finite
    assert np.all(np.isnan(found.inputs))


@pytest.mark.parametrize("value", (0.0, np.nan))
@pytest.mark.parametrize(("widths", "layer"), NETWORKS.values(), ids=NETWORKS)
def test_a_gradient_of_nothing_is_a_reported_failure(widths, layer, value):
    _, found = attacked(widths, layer, change=lambda seen: filled(seen, value))
    assert not found.finite


@pytest.mark.parametrize(("widths", "layer"), NETWORKS.values(), ids=NETWORKS)
def test_noise_takes_the_image_away(widths, layer):
    images, found = attacked(widths, layer, change=drowned)
    assert np.mean((found.inputs - images) ** 2) > GREY and found.loss > 0.1


def test_what_is_hidden_cannot_change_a_reconstruction():
    facts = vars(threat().knowledge)
    (_, clean), (_, again) = (
        attacked(*NETWORKS["one hidden layer"], change=change)
        for change in (lambda seen: seen, lambda seen: poisoned(seen, facts))
    )
    assert clean.finite and not differences(again, clean)


@pytest.mark.parametrize(
    ("facts", "layer", "message"),
    [
        ({"examples": 2}, "first", "gradient of one example, .* examples=2"),
        ({"upload": "update"}, "first", "upload='update'"),
        ({}, "fc", "the 4 numbers of an input .* 'fc' has a kernel \\(3, 3\\)"),
        ({}, "frist", "'frist' is not there; the network has .*first/kernel"),
    ],
)
def test_what_it_cannot_invert_is_refused(facts, layer, message):
    with pytest.raises(ValueError, match=message):
        dense_layer(setting(threat(**facts), none()), layer)


def test_a_layer_without_a_bias_is_refused():
    model = toy_model()

    def init(rng):
        params, stats = model.init(rng)
        return {k: v for k, v in params.items() if k != "first/bias"}, stats

    bare = setting(threat(), none(), model=model._replace(init=init))
    with pytest.raises(ValueError, match="dense_layer needs a bias in .*'first'"):
        dense_layer(bare, "first")
    dense_layer(setting(threat(), none()), "first")
