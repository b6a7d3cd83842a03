"""Chains say what their networks do."""

import jax
import numpy as np
import pytest
from toys import random_images, random_weights

from kljax.models import NETWORKS, from_nnx
from kljax.models.chain import SIGMOID, leaky_relu

CHAINED = [name for name, network in NETWORKS.items() if network.chain]
SHAPE = (16, 16, 3)


@pytest.mark.parametrize("name", CHAINED)
def test_a_chain_is_its_network(name):
    network = NETWORKS[name]
    model = from_nnx(
        lambda rngs: network.factory(10, image_shape=SHAPE, rngs=rngs),
        convolution="lax",
    )
    params, stats = random_weights(model, scale=0.2)
    images = random_images(1, *SHAPE)
    expected = model.apply(params, stats, images, train=False).logits[0]
    x = images[0]
    for layer in network.chain:
        x = layer.linear(params[f"{layer.path}/kernel"], x)
        x = np.asarray(x) + params.get(f"{layer.path}/bias", 0)
        if layer.activation is not None:
            x = layer.activation.function(x)
    np.testing.assert_allclose(x, expected, rtol=2e-5, atol=1e-6)
    assert network.chain[-1].path == network.classifier


def test_some_networks_are_chains_and_residual_ones_are_not():
    assert {"lenet", "dense"} <= set(CHAINED)
    assert "resnet20" not in CHAINED


@pytest.mark.parametrize("activation", (SIGMOID, leaky_relu(0.2)))
def test_activations_are_undone(activation):
    with jax.enable_x64(True):
        x = np.linspace(-5, 5, 20)
        value = activation.function(x)
        low, high = activation.range
        assert np.all((value > low) & (value < high))
        np.testing.assert_allclose(activation.inverse(value), x, rtol=1e-9)
        slope = jax.vmap(jax.grad(activation.function))(x)
        np.testing.assert_allclose(activation.slope(value), slope, rtol=1e-9)


def test_relu_has_no_inverse():
    with pytest.raises(ValueError, match="negative_slope must be positive"):
        leaky_relu(0.0)
