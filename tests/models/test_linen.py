"""Linen networks by the same adapter as NNX ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from toys import CLASSES, quick_jit, random_images, random_private, random_weights

from kljax.attacks import private_key_from_lock_grads
from kljax.core.types import Gate, Private, Public
from kljax.defences import keylock
from kljax.defences.lock import key_lock
from kljax.federated.clients import local_gradient
from kljax.models import from_linen, site_widths
from kljax.models.losses import cross_entropy

SHAPE = (2, 2, 1)
IMAGES = random_images(3, *SHAPE)
WIDTH = 3
GATE = Gate(np.array([2.0, 0.0, 0.5], np.float32), np.array([0, 1, -1], np.float32))
GATED = {"norm": GATE, "block/inner": Gate(GATE.shift, GATE.scale)}


class Activation(nn.Module):
    def __call__(self, x):
        return jnp.tanh(x)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(WIDTH, name="inner")(x)
        return Activation(name="activation")(x)


class Network(nn.Module):
    """In the style of Linen: compact, named layers, told its mode by `train`."""

    block: type = Block  # or the block inside a transformation

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.Dense(WIDTH, name="first")(images.reshape(images.shape[0], -1))
        x = nn.BatchNorm(momentum=0.9, use_running_average=not train, name="norm")(x)
        x = nn.Dropout(0.5, deterministic=not train, name="dropout")(x)
        x = self.block(name="block")(inputs := x)
        assert x.shape == inputs.shape
        return nn.Dense(CLASSES, name="fc")(x)


@pytest.fixture(scope="module")
def network():
    model = from_linen(Network(), SHAPE)
    return model, *random_weights(model)


def by_hand(params, stats, gates):
    """What `Network` computes in evaluation, layer by layer."""

    def layer(path, x):
        if path == "norm":
            x = (x - stats["norm/mean"]) / np.sqrt(stats["norm/var"] + 1e-5)
            x = x * params["norm/scale"] + params["norm/bias"]
        else:
            x = x @ params[f"{path}/kernel"] + params[f"{path}/bias"]
        return gates[path].scale * x + gates[path].shift if path in gates else x

    values = {"norm:input": layer("first", IMAGES.reshape(3, -1))}
    values["norm"] = layer("norm", values["norm:input"])
    values["block"] = np.tanh(layer("block/inner", values["norm"]))
    return layer("fc", values["block"]), values


def test_trees_are_flat_and_told_apart(network):
    _, params, stats = network
    layers = ("first", "block/inner", "fc")
    assert params.keys() == {
        *(f"{layer}/{name}" for layer in layers for name in ("kernel", "bias")),
        *("norm/scale", "norm/bias"),
    }
    assert stats.keys() == {"norm/mean", "norm/var"}


def test_initialisation_is_that_of_linen():
    model, rng = from_linen(Network(), SHAPE), jax.random.key(4, impl="unsafe_rbg")
    images = jnp.zeros((1, *SHAPE))
    (params, stats), theirs = quick_jit(
        lambda: (model.init(rng), Network().init(rng, images, train=False))
    )()
    assert jax.tree.leaves(params)  # not an empty comparison
    for name, leaf in params.items():
        value = theirs["params"]
        for part in name.split("/"):
            value = value[part]
        np.testing.assert_array_equal(leaf, value)
    np.testing.assert_array_equal(stats["norm/var"], np.ones(WIDTH))


@pytest.mark.parametrize(
    "gates", ({}, GATED, {"norm": GATE}), ids=lambda gates: "+".join(gates) or "none"
)
def test_gates_and_taps_are_those_computed_by_hand(network, gates):
    model, params, stats = network
    taps = ("block", "norm:input", "norm")
    out = model.apply(params, stats, IMAGES, gates=gates, taps=taps, train=False)
    logits, values = by_hand(params, stats, gates)
    np.testing.assert_allclose(out.logits, logits, atol=1e-5)
    assert tuple(out.taps) == taps
    for name in taps:
        np.testing.assert_allclose(out.taps[name], values[name], atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, out.stats, stats)


def test_unit_gates_change_no_bit_and_no_tree(network):
    model, params, stats = network
    unit = Gate(jnp.ones(WIDTH), jnp.zeros(WIDTH))
    plain, gated = (
        model.apply(
            params, stats, IMAGES, gates=gates, train=True, rngs=jax.random.key(1)
        )
        for gates in ({}, dict.fromkeys(GATED, unit))
    )
    assert plain.stats.keys() == stats.keys()
    assert np.any(plain.stats["norm/mean"] != stats["norm/mean"])
    jax.tree.map(np.testing.assert_array_equal, plain, gated)


def test_dropout_follows_its_stream(network):
    model, params, stats = network

    def logits(rngs):
        return model.apply(params, stats, IMAGES, train=True, rngs=rngs).logits

    one, two = ({"dropout": jax.random.key(seed)} for seed in (1, 2))
    np.testing.assert_array_equal(logits(one), logits(one))
    assert np.any(logits(one) != logits(two))
    with pytest.raises(Exception, match="dropout"):
        logits(None)


def test_a_locked_linen_network_trains_and_its_lock_can_be_read(network):
    model, params, stats = network
    sites = tuple(GATED)
    widths = site_widths(model, sites, SHAPE)
    assert widths == (WIDTH, WIDTH)
    lock = key_lock(sites, widths, size=5, chained=True)
    private = random_private(lock)
    targets = np.eye(CLASSES, dtype=np.float32)[[0, 1, 2]]

    def gradient(defence, private):
        return local_gradient(model, cross_entropy, defence, train=True)(
            jax.random.key(0), Public(params), stats, private, IMAGES, targets
        )

    found = quick_jit(lambda: gradient(keylock(lock), private))()
    plain = jax.eval_shape(lambda: gradient(keylock(key_lock((), ())), Private()))
    assert jax.tree.map(jnp.shape, found.public) == jax.tree.map(
        jnp.shape, plain.public
    )
    for leaf in jax.tree.leaves(found):
        assert np.all(np.isfinite(leaf))
    private_key = private_key_from_lock_grads(found.trainable)
    np.testing.assert_allclose(private_key, private.secret, rtol=1e-5)


# --- transformations -------------------------------------------------------------


@pytest.mark.parametrize("lift", (nn.remat, nn.jit))
def test_rematerialised_and_compiled_blocks_are_gated_and_tapped(network, lift):
    _, params, stats = network
    model = from_linen(Network(lift(Block)), SHAPE)
    taps = ("block", "norm:input", "norm")
    for gates in (GATED, {}, {"block/inner": GATE}):  # no gate lingers in the next
        out = model.apply(params, stats, IMAGES, gates=gates, taps=taps, train=False)
        logits, values = by_hand(params, stats, gates)
        np.testing.assert_allclose(out.logits, logits, atol=1e-5)
        np.testing.assert_allclose(out.taps["block"], values["block"], atol=1e-5)


def scanned(name):
    scan = nn.scan(
        lambda block, x, _: (block(x), None),
        variable_axes={"params": 0},
        split_rngs={"params": True},
        length=2,
    )
    return lambda x: scan(Block(name=name), x, None)[0]


def vmapped(name):
    lifted = nn.vmap(
        Block,
        in_axes=None,
        axis_size=2,
        variable_axes={"params": 0},
        split_rngs={"params": True},
    )
    return lambda x: lifted(name=name)(x).sum(axis=0)


def applied_to_each(name):
    """One layer for all examples: vmapped, but no stack."""
    lifted = nn.vmap(
        Block, variable_axes={"params": None}, split_rngs={"params": False}
    )
    return lifted(name=name)


def test_a_layer_vmapped_over_its_examples_is_gated_but_not_tapped(network):
    _, params, stats = network
    model = from_linen(Network(applied_to_each), SHAPE)
    out = model.apply(params, stats, IMAGES, gates=GATED, train=False)
    logits, _ = by_hand(params, stats, GATED)
    np.testing.assert_allclose(out.logits, logits, atol=1e-5)
    with pytest.raises(ValueError, match="tap 'block/inner' cannot leave"):
        model.apply(params, stats, IMAGES, taps=("block/inner",), train=False)


@pytest.mark.parametrize("block", (scanned, vmapped))
@pytest.mark.parametrize("site", ("block", "block/inner", "block/activation"))
def test_a_stack_of_layers_is_refused(block, site):
    model = from_linen(Network(block), SHAPE)
    params, stats = random_weights(model)
    for use in ({"gates": {site: GATE}}, {"taps": (site,)}):
        with pytest.raises(ValueError, match=f"'{site}' is in a scanned or vmapped"):
            model.apply(params, stats, IMAGES, train=False, **use)


# --- what raises -----------------------------------------------------------------


def refuse(network, message, error=ValueError, params=None, **use):
    model, own, stats = network
    params = own if params is None else params
    with pytest.raises(error, match=message):
        jax.eval_shape(lambda: model.apply(params, stats, IMAGES, train=False, **use))


def test_bad_sites_are_refused(network):
    listed = r"'nrom' \(did you mean 'norm'\?\).*\['block', 'block/activation'.*'norm'"
    refuse(network, listed, gates={"nrom": GATE})
    refuse(network, listed, taps=("nrom:input",))
    refuse(network, "lies inside site 'block'", gates={"block": GATE, **GATED})
    wide = Gate(np.ones(4), np.zeros(3))
    refuse(network, r"scale of site 'norm' has shape \(4,\)", gates={"norm": wide})


def test_a_tree_that_does_not_fit_is_named(network):
    _, params, _ = network
    other = {
        ("fc/weight" if name == "fc/bias" else name): v for name, v in params.items()
    }
    refuse(network, r"missing \['fc/bias'\], unknown \['fc/weight'\]", params=other)


class Shared(nn.Module):
    @nn.compact
    def __call__(self, images):
        layer = nn.Dense(WIDTH, name="layer")
        return layer(nn.Dense(WIDTH, name="first")(layer(images[..., 0, 0, :])))


class Counting(nn.Module):
    @nn.compact
    def __call__(self, images):
        self.variable("counters", "calls", lambda: jnp.zeros(()))
        return images


def without_mode(net, images, train):
    del train
    return net(images)


def test_a_shared_layer_is_refused():
    model = from_linen(Shared(), (1, 1, WIDTH), call=without_mode)
    params, stats = random_weights(model)
    images = jnp.ones((1, 1, 1, WIDTH))
    assert model.apply(params, stats, images, train=True).logits.shape == (1, WIDTH)
    with pytest.raises(ValueError, match="'layer' is shared"):
        model.apply(params, stats, images, gates={"layer": GATE}, train=True)


def test_what_the_adapter_cannot_hold_is_refused():
    with pytest.raises(ValueError, match=r"of the kinds \['counters'\]"):
        from_linen(Counting(), SHAPE, call=without_mode)
    with pytest.raises(TypeError, match=r"expected a flax\.linen\.Module"):
        from_linen(Network, SHAPE)
