"""Dropout in what an attacker replays: one fixed guess for each local step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from toys import (
    CLASSES,
    IMAGE_SHAPE,
    quick_jit,
    random_images,
    random_weights,
    setting,
    threat,
)

from kljax.attacks import Candidate, Protocol
from kljax.attacks.priors import batch_statistics, feature
from kljax.attacks.simulation import averaged_steps, local_steps, one_step
from kljax.core.randomness import fixed_rng
from kljax.core.types import Private, Public
from kljax.defences import none
from kljax.models import from_nnx
from kljax.models.losses import cross_entropy
from kljax.threat import View

RATE, EXAMPLES, STEPS = 0.5, 2, 2
MODES = {"victim_norm": "train", "attacker_norm": "train", "examples": EXAMPLES}


class Dropping(nnx.Module):
    """Half of the pixels, and a classifier."""

    def __init__(self, rngs):
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.fc = nnx.Linear(4, CLASSES, rngs=rngs)

    def __call__(self, images):
        return self.fc(self.dropout(images.reshape(images.shape[0], -1)))


MODEL = from_nnx(Dropping)
IMAGES = random_images(EXAMPLES, *IMAGE_SHAPE)
TARGETS = np.eye(CLASSES, dtype=np.float32)[:EXAMPLES]


def gradient(params, images, targets, index):
    """Gives the gradient of one step under the guess for it."""

    def loss(params):
        rng = jax.random.fold_in(fixed_rng("dropout"), index)
        out = MODEL.apply(params, {}, images, train=True, rngs=rng)
        return cross_entropy(out.logits, targets)

    return jax.grad(loss)(params)


def by_hand(kind, params):
    if kind == "one step":
        return gradient(params, IMAGES, TARGETS, 0)
    now = params
    for step in range(STEPS):
        rows = slice(step, step + 1) if kind == "local steps" else slice(None)
        grads = gradient(now, IMAGES[rows], TARGETS[rows], step)
        now = jax.tree.map(lambda w, g: w - RATE * g, now, grads)
    return jax.tree.map(jnp.subtract, now, params)


def simulation(kind):
    upload = "gradient" if kind == "one step" else "update"
    here = setting(threat(**MODES, upload=upload), none(), model=MODEL)
    if kind == "one step":
        return one_step(here, here.defence.gates)
    options = {"optimiser": optax.sgd(RATE), "steps": STEPS}
    if kind == "local steps":
        return local_steps(here, here.defence.gates, batch=1, **options)
    return averaged_steps(here, here.defence.gates, every=1, **options)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ("one step", "local steps", "averaged steps"))
def test_each_step_has_its_own_mask_and_always_the_same(kind):
    """A change is not divided by anything, where nobody gives it a unit."""
    params, stats = random_weights(MODEL)
    view = View(Public(params), stats, Public(params), *(5 * [None]))
    candidate = Candidate(IMAGES, TARGETS, Private())
    simulate = quick_jit(lambda view: simulation(kind)(view, candidate)[0])
    found, expected = (
        simulate(view).model,
        quick_jit(lambda p: by_hand(kind, p))(params),
    )
    assert found.keys() == expected.keys()
    for name, leaf in expected.items():
        np.testing.assert_allclose(found[name], leaf, rtol=1e-4, atol=1e-6)
    others = [gradient(params, IMAGES, TARGETS, n)["fc/kernel"] for n in range(2)]
    assert not np.allclose(*others)


# --- priors that look into the network ---------------------------------------------


def masked(images, index):
    """What the dropout of the guess for a step lets through."""
    rng = jax.random.fold_in(fixed_rng("dropout"), index)
    taps = quick_jit(
        lambda images: (
            MODEL.apply(
                random_weights(MODEL)[0],
                {},
                images,
                taps=("dropout",),
                train=True,
                rngs=rng,
            ).taps
        )
    )
    return taps(images)["dropout"]


def test_the_classifiers_input_is_that_of_the_first_steps_guess():
    params, _ = random_weights(MODEL)
    here = setting(threat(**MODES | {"examples": 1}), none(), model=MODEL)
    wanted, signal = np.array([0.3, 0.0, 1.0, 0.7]), np.array([1.0, -2.0, 0.5])
    sent = {"fc/kernel": np.outer(wanted, signal), "fc/bias": signal}
    sent = jax.tree.map(np.float32, sent)
    view = View(Public(params), {}, Public(sent), *(5 * [None]))
    prior = feature(here, lambda public, secret: {}, 0.5)
    candidate = Candidate(IMAGES[:1], TARGETS[:1], None)
    found = quick_jit(lambda view: prior(view, candidate, 0.0))(view)
    fed = masked(IMAGES[:1], 0)[0]
    assert 0 < np.sum(fed == 0) < 4
    np.testing.assert_allclose(found, 0.5 * np.sum((fed - wanted) ** 2), rtol=1e-5)


class DroppingNorm(nnx.Module):
    """A norm behind the dropout, and a classifier."""

    def __init__(self, rngs):
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.6, rngs=rngs)
        self.fc = nnx.Linear(4, CLASSES, rngs=rngs)

    def __call__(self, images):
        return self.fc(self.norm(self.dropout(images.reshape(images.shape[0], -1))))


@pytest.mark.parametrize("steps", (1, 2))
def test_statistics_are_those_of_every_steps_guess(steps):
    """All images in each step; the statistics that came back are of no dropout."""
    model = from_nnx(DroppingNorm)
    params, stats = random_weights(model)
    facts = MODES | {"stats": "visible"}
    if steps == 1:
        here = setting(threat(**facts), none(), model=model)
    else:
        protocol = Protocol(optax.sgd(RATE), steps, EXAMPLES, RATE)
        here = setting(
            threat(**facts, upload="update"), none(), model=model, protocol=protocol
        )
    new = {name: leaf + 0.1 for name, leaf in stats.items()}
    view = View(Public(params), stats, Public(params), new, *(4 * [None]))
    prior = batch_statistics(here, lambda public, secret: {}, 1.0)
    candidate = Candidate(jnp.asarray(IMAGES), TARGETS, None)
    found = quick_jit(lambda view: prior(view, candidate, 0.0))(view)
    mine = {name: np.asarray(leaf, np.float64) for name, leaf in stats.items()}
    for step in range(steps):
        fed = masked(IMAGES, step)
        batch = {"norm/mean": np.mean(fed, axis=0), "norm/var": np.var(fed, axis=0)}
        mine = {name: 0.6 * mine[name] + 0.4 * batch[name] for name in batch}
    apart = [(mine[name] - new[name]) / (1 - 0.6**steps) for name in mine]
    expected = sum(np.linalg.norm(x) for x in apart)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
