"""What a client has at hand when it releases, and who cannot do without which part."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_studies import sites_of
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

from kljax.core.types import Public
from kljax.defences import Defence, at_update, censor, chain, gaussian_noise, keylock
from kljax.defences.arms import parse_arm, parse_training_arm
from kljax.federated.clients import Batches, local_training, one_step
from kljax.models.losses import cross_entropy

IMAGES, LABELS = random_images(2, *IMAGE_SHAPE), np.array([0, 2])


def telling(of_context):
    """Sends a number about the context in place of the gradient."""

    def release(rng, state, grads, context):
        told = of_context(context)
        return jax.tree.map(lambda g: jnp.full_like(g, told), grads), state

    return Defence(release=release)


@pytest.mark.parametrize("train", (False, True))
def test_features_are_those_that_the_gradient_was_computed_through(train):
    """In NumPy: linear, norm by the batch or the running statistics, lock, sigmoid."""
    params, stats = random_weights(toy_model())
    private = random_private()
    weights = np.arange(1, 7).reshape(2, 3)

    def told(context):
        features = context.features("fc:input", context.inputs)
        return jnp.sum(weights * features)

    defence = chain(keylock(LOCK), telling(told))
    step = quick_jit(one_step(toy_model(), cross_entropy, defence, train=train))
    targets = np.eye(CLASSES, dtype=np.float32)[LABELS]
    update = step(jax.random.key(1), Public(params), stats, private, IMAGES, targets)
    x = IMAGES.reshape(2, -1) @ params["first/kernel"] + params["first/bias"]
    mean, variance = x.mean(axis=0), x.var(axis=0)
    if not train:
        mean, variance = stats["norm/mean"], stats["norm/var"]
    scale, shift = map(
        np.asarray, LOCK.gates(private.trainable, private.secret)["norm"]
    )
    x = scale * (x - mean) / np.sqrt(variance + 1e-5) + shift
    wanted = np.sum(weights / (1 + np.exp(-x)))
    np.testing.assert_allclose(update.sent.model["fc/bias"], wanted, rtol=1e-4)


def test_steps_are_counted_from_0_in_every_round():
    defence = telling(lambda context: 10.0**context.step)
    training = local_training(toy_model(), cross_entropy, defence, optax.sgd(1.0))
    params, stats = random_weights(toy_model())
    state = training.init(Public(params), random_private())
    batches = Batches(*jax.tree.map(lambda x: x[:, None], (IMAGES, LABELS)), [True] * 2)
    run = quick_jit(training.run)
    for number in range(2):
        upload, state, _ = run(
            jax.random.key(0),
            np.int32(number),
            Public(params),
            stats,
            state,
            batches._replace(valid=np.ones(2, bool)),
        )
        np.testing.assert_allclose(upload.delta.model["fc/bias"], -11, rtol=1e-5)


def test_what_needs_a_gradients_own_context_is_refused_where_the_arm_is_read():
    sites = sites_of("layers/0")
    for read in (parse_arm, parse_training_arm):
        message = "'none.censor@update'.*needs Context.loss.*without '@update'"
        with pytest.raises(ValueError, match=message):
            read("none+censor@update", sites, {})
    both = chain(censor(), Defence(release=telling(jnp.sum).release, needs=("loss",)))
    inside = Defence(release=telling(jnp.sum).release, needs=("features",))
    every = chain(both, gaussian_noise(1.0), inside)
    assert (both.needs, every.needs) == (("loss",), ("loss", "features"))
    with pytest.raises(ValueError, match="Context.loss and Context.features, of"):
        at_update(every)
