"""A client's round with everything that may be in it, against a loop in Python."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toys import (
    CLASSES,
    IMAGE_SHAPE,
    LOCK,
    quick_jit,
    random_images,
    random_private,
    random_weights,
    toy_model,
)

from kljax.core.types import Private, Public
from kljax.defences import (
    at_update,
    chain,
    dp_fedavg,
    keylock,
    none,
    norm_clipping,
)
from kljax.federated.clients import (
    Batches,
    all_finite,
    local_gradient,
    local_training,
    local_update,
    one_step,
)
from kljax.models import from_nnx
from kljax.models.dense import Dense
from kljax.models.losses import cross_entropy
from kljax.threat import LocalSteps

RNG, NUMBER, STEPS, BATCH = jax.random.key(9), 2, 4, 2
VALID = np.array([True, True, False, True])
CLIP, CLIP_UPDATE = 0.4, 0.05
MODEL = toy_model()
DEFENCE = chain(
    keylock(LOCK), norm_clipping(CLIP), at_update(norm_clipping(CLIP_UPDATE))
)


def by_round(number):
    return optax.sgd(0.1 * number, momentum=0.5)


def augment(rng, images):
    return images * jax.random.uniform(rng, (len(images), 1, 1, 1))


def pull(now, received):
    """Has another derivative by what is now than by what was received."""
    pairs = zip(jax.tree.leaves(now), jax.tree.leaves(received), strict=True)
    return sum(jnp.sum(a**2 - 3 * a * b) for a, b in pairs)


def pulled(now, received):
    return jax.tree.map(lambda a, b: 2 * a - 3 * b, now, received)


def renew(rng, private):
    drawn = jax.random.uniform(rng, private.secret.shape)
    return private._replace(secret=drawn)


def derived(rng, *children):
    for child in children:
        rng = jax.random.fold_in(rng, child)
    return rng


# As documented in the code: steps, release, renewal; augmentation, gradient, release.
STEP, RENEWAL, AUGMENTATION = 0, 2, 0


def data():
    images = random_images(STEPS, BATCH, *IMAGE_SHAPE)
    labels = np.random.default_rng(0).integers(0, CLASSES, (STEPS, BATCH))
    return images, labels


def length(tree):
    return sum(float(np.sum(np.square(leaf))) for leaf in jax.tree.leaves(tree)) ** 0.5


def clipped(tree, most):
    factor = min(1.0, most / length(tree))
    return jax.tree.map(lambda leaf: factor * leaf, tree)


@quick_jit
def derivative(trained, secret, stats, seen, targets):
    def objective(trained):
        public, weights = trained
        gates = LOCK.gates(weights, secret)
        out = MODEL.apply(public.model, stats, seen, gates=gates, train=True)
        return cross_entropy(out.logits, targets), out

    return jax.value_and_grad(objective, has_aux=True)(trained)


def slowly(received, stats, private, memory, valid=VALID):
    """Trains step by step; gives what a client keeps, sends and says."""
    images, labels = data()
    private = renew(derived(RNG, RENEWAL), private)
    trained = (received, private.trainable)
    losses, rights, norms = [], [], []

    for t in np.flatnonzero(valid):
        seen = augment(derived(RNG, STEP, t, AUGMENTATION), images[t])
        targets = np.eye(CLASSES, dtype=np.float32)[labels[t]]
        (loss, out), (public, weights) = derivative(
            trained, private.secret, stats, seen, targets
        )
        rights.append(np.mean(np.argmax(out.logits, axis=1) == labels[t]))
        losses.append(float(loss))
        stats = out.stats
        public = jax.tree.map(np.add, public, pulled(trained[0], received))
        norms.append(length(public))
        grads = (clipped(public, CLIP), weights)
        memory = jax.tree.map(lambda m, g: 0.5 * m + g, memory, grads)
        trained = jax.tree.map(lambda w, m: w - 0.1 * NUMBER * m, trained, memory)
    assert max(norms) > CLIP and np.ptp(rights) > 0
    change = jax.tree.map(np.subtract, trained[0], received)
    assert length(change) > CLIP_UPDATE
    kept = Private(private.secret, trained[1])
    means = np.mean(losses), np.mean(rights)
    return change, clipped(change, CLIP_UPDATE), stats, kept, memory, means


def begun():
    params, stats = random_weights(MODEL)
    generator = np.random.default_rng(3)
    private = random_private()
    memory = jax.tree.map(
        lambda leaf: np.float32(generator.normal(size=np.shape(leaf))),
        (Public(params), private.trainable),
    )
    return Public(params), stats, private, memory


def assert_close(found, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        found,
        expected,
    )


OPTIONS = {"augment": augment, "penalty": pull, "renew": renew}


@pytest.mark.parametrize("reset", (False, True))
def test_local_training_is_the_loop(reset):
    received, stats, private, memory = begun()
    training = local_training(
        MODEL, cross_entropy, DEFENCE, by_round, reset_optimiser=reset, **OPTIONS
    )
    state = training.init(received, private)
    start = jax.tree.map(jnp.zeros_like, memory) if reset else memory
    momentum, *rest = state.optimiser
    state = state._replace(optimiser=(momentum._replace(trace=memory), *rest))
    images, labels = data()
    images = np.where(VALID[:, None, None, None, None], images, np.nan)
    change, upload, kept, progress = quick_jit(training.record)(
        RNG, NUMBER, received, stats, state, Batches(images, labels, VALID)
    )
    expected = slowly(received, stats, private, start)
    assert_close((change, *upload, kept.private, kept.optimiser[0].trace), expected[:5])
    assert_close((progress.loss, progress.accuracy), expected[5])
    assert bool(progress.finite)


@pytest.mark.slow
def test_a_recorded_update_is_the_loop():
    received, stats, private, _ = begun()
    images, labels = (x.reshape(STEPS * BATCH, *x.shape[2:]) for x in data())
    training = local_update(
        MODEL, cross_entropy, DEFENCE, by_round, steps=STEPS, batch=BATCH, **OPTIONS
    )
    state = training.init(received, private)
    update = quick_jit(training.run)(
        RNG, NUMBER, received, stats, state, images, labels
    )
    nothing = jax.tree.map(jnp.zeros_like, (received, private.trainable))
    every = np.ones(STEPS, bool)
    _, sent, after, kept, _, _ = slowly(received, stats, private, nothing, every)
    assert_close((update.sent, update.new_stats), (sent, after))
    assert_close(update.private, private._replace(secret=kept.secret))
    assert_close(update.initial_lock_weights, private.trainable)
    moved = jax.tree.map(np.subtract, kept.trainable, private.trainable)
    assert_close(update.lock_grads, moved)
    np.testing.assert_array_equal(update.inputs, images)
    np.testing.assert_array_equal(update.targets, np.eye(CLASSES)[labels])
    assert update.local == LocalSteps(STEPS, BATCH)
    # Before any release nothing is clipped, neither each gradient nor the whole.
    bare = local_update(
        MODEL,
        cross_entropy,
        keylock(LOCK),
        by_round,
        steps=STEPS,
        batch=BATCH,
        **OPTIONS,
    )
    bare = quick_jit(bare.run)(
        RNG, NUMBER, received, stats, bare.init(received, private), images, labels
    )
    assert_close(update.before_release, bare.sent)
    assert length(bare.sent) > 2 * CLIP_UPDATE


def test_one_step_has_what_a_first_step_has():
    """Its own random keys; a pull away from what was received counts at once."""
    received, stats, private, _ = begun()
    images, labels = (x[0] for x in data())
    targets = np.eye(CLASSES, dtype=np.float32)[labels]
    defence = chain(keylock(LOCK), norm_clipping(CLIP))
    step = one_step(MODEL, cross_entropy, defence, train=True, **OPTIONS)
    update = quick_jit(step)(RNG, received, stats, private, images, targets)
    # gradient, release, renewal, augmentation
    fresh = renew(derived(RNG, 2), private)
    seen = augment(derived(RNG, 3), images)
    gradient = local_gradient(MODEL, cross_entropy, defence, train=True)
    found = quick_jit(gradient)(RNG, received, stats, fresh, seen, targets)
    expected = jax.tree.map(jnp.add, found.public, pulled(received, received))
    assert_close(update.before_release, expected)
    assert_close(update.sent, clipped(expected, CLIP))
    assert_close(update.private, fresh)
    assert_close(update.lock_grads, found.trainable)
    assert_close(update.new_stats, found.stats)
    np.testing.assert_array_equal(update.inputs, images)


def test_no_upload_that_is_not_finite_passes_for_finite():
    received, stats, private, _ = begun()
    images, labels = data()
    batches = Batches(images, labels, VALID)
    training = local_training(
        MODEL, cross_entropy, none(), optax.sgd(0.1, momentum=0.5)
    )
    run = quick_jit(training.run)
    state = training.init(received, Private())
    assert bool(run(RNG, 0, received, stats, state, batches)[2].finite)
    momentum, *rest = state.optimiser
    broken = jax.tree.map(lambda leaf: leaf.at[...].set(jnp.nan), momentum.trace)
    state = state._replace(optimiser=(momentum._replace(trace=broken), *rest))
    assert not bool(run(RNG, 0, received, stats, state, batches)[2].finite)
    # No step at all: nothing is known of the loss.
    idle = batches._replace(valid=np.zeros(STEPS, bool))
    state = training.init(received, Private())
    upload, kept, progress = run(RNG, 0, received, stats, state, idle)
    assert bool(progress.finite) and np.isnan(progress.loss)
    assert_close(upload.delta, jax.tree.map(jnp.zeros_like, received))
    assert_close(upload.stats, stats)
    del kept


def test_a_client_whose_training_diverges_behind_a_private_release_sends_noise():
    """To leave it out would tell the server of its data; what it keeps stays finite."""
    network = from_nnx(
        lambda rngs: Dense(CLASSES, image_shape=IMAGE_SHAPE, widths=(3,), rngs=rngs)
    )
    params, stats = network.init(RNG)
    received = Public(params)
    images, labels = data()
    images[0] = np.inf
    batches = Batches(images, labels, VALID)
    release = at_update(dp_fedavg(CLIP, noise_multiplier=1.0))
    training = local_training(
        network, cross_entropy, release, optax.sgd(0.1, momentum=0.5)
    )
    state = training.init(received, Private())
    delta, upload, kept, progress = quick_jit(training.record)(
        RNG, 0, received, stats, state, batches
    )
    assert not all_finite(delta) and np.isnan(progress.loss)
    assert bool(progress.finite) and length(upload.delta) > 0
    assert_close(kept, state)
