"""What leaves a client, and what does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import (
    CLASSES,
    IMAGE_SHAPE,
    LOCK,
    SITES,
    WIDTHS,
    locked_update,
    quick_jit,
    random_images,
    random_private,
    random_weights,
    toy_model,
)

from kljax.attacks import private_key_from_lock_grads
from kljax.core.types import Gate, Private, Public
from kljax.defences import (
    chain,
    gates_of,
    keylock,
    none,
    norm_clipping,
    plaintext_gates,
)
from kljax.defences.lock import key_lock
from kljax.federated.clients import local_gradient, one_step
from kljax.models.losses import LOSSES, cross_entropy, squared_error

RNG = jax.random.key(5)
IMAGES = random_images(2, *IMAGE_SHAPE)
TARGETS = np.eye(CLASSES, dtype=np.float32)[[2, 0]]


@pytest.fixture(scope="module")
def toy():
    return toy_model(), *random_weights(toy_model())


def compute(toy, defence, private=None, public=(), loss=cross_entropy, train=True):
    """One client's gradient on the toy network."""
    model, params, stats = toy
    gradient = quick_jit(local_gradient(model, loss, defence, train=train))
    private = Private() if private is None else private
    return gradient(RNG, Public(params, public), stats, private, IMAGES, TARGETS)


@pytest.fixture(scope="module")
def locked(toy):
    return compute(toy, keylock(LOCK), random_private())


@pytest.fixture(scope="module")
def control(toy):
    """The same client with the lock's gates in plaintext."""
    private = random_private()
    gates = LOCK.gates(private.trainable, private.secret)
    defence = plaintext_gates(gates_of(keylock(LOCK)))
    return gates, compute(toy, defence, public=gates)


# --- the gradient ----------------------------------------------------------------


def test_gradients_reach_the_lock_through_its_gates(locked, control):
    """By the chain rule: gate gradient x activation's derivative x private key."""
    private = random_private()
    _, plain = control
    (site,) = SITES
    for name, gate_grads in plain.public.defence[site]._asdict().items():
        layer = private.trainable[0][name]
        alive = private.secret @ layer["kernel"] + layer["bias"] > 0
        delta = np.where(alive, gate_grads, 0)
        assert np.any(delta != 0)
        found = locked.trainable[0][name]
        np.testing.assert_allclose(found["bias"], delta, atol=1e-6)
        np.testing.assert_allclose(
            found["kernel"], np.outer(private.secret, delta), atol=1e-6
        )


def test_the_private_key_has_no_gradient(locked):
    assert locked._fields == ("public", "trainable", "stats", "loss", "logits")
    lock_weights = random_private().trainable
    assert jax.tree.structure(locked.trainable) == jax.tree.structure(lock_weights)
    shapes = {leaf.shape for leaf in jax.tree.leaves(locked)}
    assert (5,) not in shapes  # K = 5; nothing else in the toy has this shape


def test_a_lock_and_its_plaintext_twin_train_the_network_alike(locked, control):
    _, plain = control
    assert locked.public.defence == ()
    for name, grads in plain.public.model.items():
        np.testing.assert_allclose(locked.public.model[name], grads, atol=1e-5)
    assert locked.loss == pytest.approx(float(plain.loss))
    jax.tree.map(np.testing.assert_array_equal, locked.stats, plain.stats)


def test_unit_gates_and_no_defence_train_the_network_alike(toy):
    (site,), (width,) = SITES, WIDTHS
    unit = {site: Gate(np.ones(width, np.float32), np.zeros(width, np.float32))}
    gated = compute(toy, plaintext_gates(None), public=unit)
    plain = compute(toy, none())
    for name, grads in plain.public.model.items():
        np.testing.assert_allclose(gated.public.model[name], grads, atol=1e-5)


def test_norm_mode_is_passed_on(toy):
    _, _, stats = toy
    moved, kept = (compute(toy, none(), train=train) for train in (True, False))
    jax.tree.map(np.testing.assert_array_equal, kept.stats, stats)
    assert np.all(moved.stats["norm/mean"] != stats["norm/mean"])
    assert abs(moved.loss - kept.loss) > 1e-3


# --- losses ----------------------------------------------------------------------


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)


# name: (value, derivative in the logits, before the mean over examples)
BY_HAND = {
    "cross_entropy": (
        lambda z: -np.sum(TARGETS * np.log(softmax(z)), axis=-1),
        lambda z: softmax(z) - TARGETS,
    ),
    "squared_error": (
        lambda z: np.sum((z - TARGETS) ** 2, axis=-1) / 2,
        lambda z: z - TARGETS,
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_those_on_paper(name):
    logits = np.array([[1.0, -2.0, 0.5], [0.0, 3.0, 0.25]], np.float32)
    value, derivative = BY_HAND[name]
    found, grads = jax.value_and_grad(LOSSES[name])(logits, TARGETS)
    assert found == pytest.approx(value(logits).mean(), rel=1e-6)
    np.testing.assert_allclose(grads, derivative(logits) / 2, atol=1e-6)


def test_the_loss_is_an_argument(toy):
    model, params, stats = toy
    found = compute(toy, none(), loss=squared_error, train=False)
    logits = quick_jit(
        lambda: model.apply(params, stats, jnp.asarray(IMAGES), train=False).logits
    )()
    value, derivative = BY_HAND["squared_error"]
    logits = np.asarray(logits)
    assert found.loss == pytest.approx(value(logits).mean(), rel=1e-5)
    np.testing.assert_allclose(
        found.public.model["fc/bias"], derivative(logits).mean(axis=0), atol=1e-6
    )


# --- the update ------------------------------------------------------------------


def test_the_upload_of_a_lock_holds_no_leaf_of_it():
    update = locked_update(2)
    assert update.sent.defence == ()
    assert update.sent.model.keys() == update.public.model.keys()
    sent = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(update.sent)])
    for leaf in jax.tree.leaves((update.private, update.lock_grads)):
        for number in np.ravel(leaf)[np.ravel(leaf) != 0]:
            assert number not in sent


def test_an_update_is_true(toy):
    update = locked_update(2)
    assert update.initial_lock_weights is not None
    private = random_private(seed=0)
    jax.tree.map(np.testing.assert_array_equal, update.private, private)
    jax.tree.map(
        np.testing.assert_array_equal, update.initial_lock_weights, private.trainable
    )
    np.testing.assert_array_equal(update.inputs, random_images(2, *IMAGE_SHAPE, seed=0))


def test_what_is_sent_is_what_the_defence_releases(toy):
    model, params, stats = toy
    defence = chain(none(), norm_clipping(1e-3))
    step = quick_jit(one_step(model, cross_entropy, defence, train=True))
    update = step(RNG, Public(params), stats, Private(), IMAGES, TARGETS)
    sent = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(update.sent)])
    assert np.linalg.norm(sent) == pytest.approx(1e-3, rel=1e-4)
    raw = compute(toy, none()).public.model
    raw = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(raw)])
    cosine = raw @ sent / np.linalg.norm(raw) / np.linalg.norm(sent)
    assert cosine == pytest.approx(1, abs=1e-5)


# --- the private key in the lock's gradient --------------------------------------


@pytest.mark.parametrize("alive", (3, 1), ids=("all alive", "one alive"))
@pytest.mark.parametrize("chained", (False, True))
def test_shared_lock_gradients_give_the_private_key_away(alive, chained):
    lock = key_lock(("norm", "fc"), (3, 3), size=5, chained=chained)
    private = random_private(lock)
    # Far below zero, a ReLU channel is dead and its gradient exactly zero.
    dead = np.where(np.arange(3) < alive, 1.0, -99.0).astype(np.float32)
    private.trainable[0]["scale"]["bias"] = dead
    private.trainable[0]["shift"]["bias"] = np.full(3, -99.0, np.float32)
    model = toy_model()
    found = compute((model, *random_weights(model)), keylock(lock), private)
    signal = found.trainable[0]["scale"]["bias"]
    assert np.sum(signal != 0) == alive
    private_key = private_key_from_lock_grads(found.trainable)
    np.testing.assert_allclose(private_key, private.secret, rtol=1e-5)
