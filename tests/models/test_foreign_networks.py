"""Networks that nobody wrote for this library, locked without an edit."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from foreign_networks import (
    CLASSES,
    IMAGE_SHAPE,
    Digits,
    SmallResNet,
    VisionTransformer,
)
from toys import quick_jit, random_images, random_weights

from kljax.core.types import Gate, Private, Public
from kljax.defences import keylock, none
from kljax.defences.lock import key_lock
from kljax.federated.clients import local_gradient
from kljax.models import from_nnx, site_widths
from kljax.models.losses import cross_entropy


class Foreign(NamedTuple):
    build: type
    site: str  # one layer to lock
    sites: tuple[str, ...]  # several, in the order of the forward pass
    widths: tuple[int, ...]


NETWORKS = {
    "digits": Foreign(Digits, "norm1", ("norm1", "conv2", "head/layers/0"), (4, 6, 8)),
    "transformer": Foreign(
        VisionTransformer,
        "patches",
        ("patches", "blocks/0/attention/query", "blocks/0/mlp/layers/2", "norm"),
        (8, 4, 8, 8),  # queries are [B, T, heads, width per head]
    ),
    "resnet": Foreign(
        SmallResNet,
        "stem_norm",
        ("stem_norm", "blocks/0/conv", "blocks/1/norm", "blocks/1/shortcut"),
        (4, 4, 6, 6),
    ),
}
RNG = jax.random.key(3, impl="unsafe_rbg")  # the quickest to compile
TARGETS = np.eye(CLASSES, dtype=np.float32)[[1, 4]]


@pytest.fixture(scope="module", params=NETWORKS.values(), ids=NETWORKS)
def foreign(request):
    model = from_nnx(request.param.build)
    return request.param, model, *random_weights(model)


def locked(foreign, model, sites):
    """A defence that locks `sites` in a chain, and its private part."""
    widths = site_widths(model, sites, IMAGE_SHAPE)
    lock = key_lock(sites, widths, size=7, chained=True, activation=jax.nn.softplus)
    defence = keylock(lock)
    return defence, defence.init(RNG, None)[1]


def test_widths_of_all_sites(foreign):
    foreign, model, _, _ = foreign
    assert site_widths(model, foreign.sites, IMAGE_SHAPE) == foreign.widths


def test_unit_gates_change_nothing(foreign):
    foreign, model, params, stats = foreign
    images = random_images(2, *IMAGE_SHAPE)
    units = {
        site: Gate(jnp.ones(width), jnp.zeros(width))
        for site, width in zip(foreign.sites, foreign.widths, strict=True)
    }

    @jax.jit
    def difference(params, stats, images):
        plain, gated = (
            model.apply(params, stats, images, gates=gates, train=True, rngs=RNG)
            for gates in ({}, units)
        )
        assert plain.stats.keys() == gated.stats.keys() == stats.keys()
        return (plain.logits, plain.stats), (gated.logits, gated.stats)

    jax.tree.map(np.testing.assert_array_equal, *difference(params, stats, images))


@pytest.mark.parametrize("several", (False, True), ids=("one site", "chained sites"))
def test_public_trees_are_those_of_the_plain_network(foreign, several):
    foreign, model, params, stats = foreign
    images = random_images(2, *IMAGE_SHAPE)
    sites = foreign.sites if several else (foreign.site,)
    defence, private = locked(foreign, model, sites)

    def shapes(defence, private):
        gradient = local_gradient(model, cross_entropy, defence, train=True)
        found = jax.eval_shape(
            gradient, RNG, Public(params), stats, private, images, TARGETS
        )
        return found.public, found.stats, found.trainable

    *public, lock_grads = shapes(defence, private)
    *plain, _ = shapes(none(), Private())
    assert public == plain
    assert plain[0].model == jax.eval_shape(lambda: params)
    assert lock_grads == jax.eval_shape(lambda: private.trainable)


def test_one_locked_site_trains_network_and_lock(foreign):
    foreign, model, params, stats = foreign
    images = random_images(2, *IMAGE_SHAPE)
    defence, private = locked(foreign, model, (foreign.site,))
    gradient = local_gradient(model, cross_entropy, defence, train=True)
    found = quick_jit(gradient)(RNG, Public(params), stats, private, images, TARGETS)
    for name, grads in found.public.model.items():
        assert np.all(np.isfinite(grads)), name
    for leaf in jax.tree.leaves(found.trainable):
        assert np.all(np.isfinite(leaf)) and np.any(leaf != 0)


@pytest.mark.slow
def test_an_attack_can_differentiate_the_gradient_of_a_chain(foreign):
    foreign, model, params, stats = foreign
    defence, private = locked(foreign, model, foreign.sites)

    def objective(images):
        gradient = local_gradient(model, cross_entropy, defence, train=True)
        found = gradient(RNG, Public(params), stats, private, images, TARGETS)
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(found.public))

    images = random_images(2, *IMAGE_SHAPE)
    value, grads = quick_jit(jax.value_and_grad(objective))(images)
    assert np.isfinite(value) and value > 0
    assert grads.shape == images.shape
    assert np.all(np.isfinite(grads)) and np.any(grads != 0)
