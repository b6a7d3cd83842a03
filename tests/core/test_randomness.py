"""No random key is used twice: every draw of a run and of a study is recorded.

A random key that is drawn from and split is used twice, too: its children's bits are
what was drawn.
"""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest
from begun_runs import RUN, UPLOADS, begin, study
from outside_package import DroppingBehindNorms
from recorded_draws import name, recorded_draws
from tiny_studies import quick_compilation
from toys import quick_jit, random_images, setting, threat, toy_model

from kljax.attacks.architectures import Space
from kljax.attacks.generators import init_image_branch, init_label_branch
from kljax.attacks.presets.inverters import draw_layers
from kljax.attacks.rearranging import propose
from kljax.attacks.untrained import untrained_images
from kljax.core.randomness import FIXED, derive_rng, fixed_rng
from kljax.core.types import Private, Public
from kljax.data.augmentation import crop_and_flip
from kljax.defences import (
    Context,
    at_update,
    chain,
    gates_by_passports,
    gaussian_noise,
    keylock,
    none,
    outpost,
    quantise,
    slice_noise,
    transform_images,
)
from kljax.defences.lock import key_lock
from kljax.federated import rounds as rounds_
from kljax.federated.algorithms import fedavg, new_private_key
from kljax.federated.clients import Batches
from kljax.models import from_nnx, uniform
from kljax.models.losses import cross_entropy
from kljax.models.redrawing import redrawn
from kljax.parallel import Layout, map_victims
from kljax.studies import training
from kljax.studies.builder import run_setup
from kljax.studies.builder.drawn_client import PURPOSES
from kljax.studies.builder.study import build_study
from kljax.studies.config import LeakConfig

SHAPE, CLASSES = (4, 4, 1), 3
CLIENTS, STEPS, BATCH, ROUNDS = 3, 2, 2, 3


@pytest.fixture(autouse=True)
def quickly():
    with quick_compilation():
        yield


# --- how random keys are derived -------------------------------------------------


def test_jax_folds_and_splits_alike():
    """Why one random key must not be used both ways, nor by two who count."""
    rng = jax.random.key(3)
    for count in (3, 5):
        children = jax.random.split(rng, count)
        assert [name(child) for child in children] == [
            name(jax.random.fold_in(rng, i)) for i in range(count)
        ]


def test_a_new_purpose_changes_none_before_it():
    rng, purposes = jax.random.key(3), ("one", "two")
    for purpose in purposes:
        before = derive_rng(rng, purposes, purpose)
        assert name(before) == name(derive_rng(rng, (*purposes, "new"), purpose))
    with pytest.raises(ValueError):
        derive_rng(rng, purposes, "three")


def test_fixed_draws_are_no_studys():
    fixed = {name(fixed_rng(purpose)) for purpose in FIXED}
    root = jax.random.key(0)
    families = {name(derive_rng(root, PURPOSES, p)) for p in PURPOSES}
    assert len(fixed) == len(FIXED) and not fixed & families


# --- parts ------------------------------------------------------------------------


GRADS = Public({"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.float32)})


def of_context():
    """What a release may ask for, of a gradient that is made up."""

    def gradient(inputs, targets):
        del targets
        found = {"a": inputs[0] * np.ones((2, 3), np.float32), "b": inputs[:4] ** 2}
        return SimpleNamespace(public=Public(found))

    inputs = np.ones(5, np.float32)
    return Context(GRADS, {}, inputs, np.ones((1, 3), np.float32), gradient)


def released(defence):
    state = defence.init_state(GRADS)
    return lambda rng: defence.release(rng, state, GRADS, of_context())[0]


def untrained(architecture):
    space = Space((4, 4, 1), channels=8, scales=1, kernel=3, narrowest=8)
    chosen = space.usual() if architecture else None
    unknown = untrained_images(setting(threat(), none()), space, chosen)
    return lambda rng: unknown.start(rng, None)


SITES = "a", "b"
DRAWN = {
    "untrained networks": untrained(architecture=False),
    "of one architecture": untrained(architecture=True),
    "branches of GRNN": lambda rng: init_image_branch(rng, 3, 2, 1),
    "a branch for labels": lambda rng: init_label_branch(rng, 3, 2),
    "layers of an inverter": lambda rng: draw_layers(rng, (3, 4, 2)),
    "orders of tokens": lambda rng: propose(rng, 5, 6, 8),
    "a key-lock": lambda rng: keylock(key_lock(SITES, (2, 3), size=4)).init(rng, {}),
    "passports": lambda rng: gates_by_passports(SITES, widths=(2, 3), size=4).init(
        rng, {}
    ),
    "policies": lambda rng: transform_images(((3, 1), (7,))).draw_private(
        rng, Private(), 2
    ),
    "weights of a network": redrawn(toy_model(), uniform(0.5)).init,
    "noise": released(gaussian_noise(0.1)),
    "noise twice": released(chain(gaussian_noise(0.1), gaussian_noise(0.1))),
    "rounding": released(quantise(2, mode="stochastic")),
    "a schedule": released(outpost()),
    "slices": released(slice_noise(3, 1, 0.1)),
}


@pytest.mark.slow
def test_no_part_uses_a_random_key_twice():
    """All parts, each from a random key of its own, in one program."""
    with recorded_draws() as seen:
        rngs = [jax.random.key(number) for number in range(len(DRAWN))]
        seen.take()

        @quick_jit
        def everything(rngs):
            return [draw(rng) for draw, rng in zip(DRAWN.values(), rngs, strict=True)]

        everything(rngs)
        drawn = seen.take()
    assert drawn.used_twice() == []
    # And every part has drawn.
    of_parts = {drawn.ancestors(key)[-1] for key in drawn.keys}
    assert of_parts == {name(rng) for rng in rngs}


# --- rounds ----------------------------------------------------------------------


@functools.cache
def everything_random():
    """Rounds with a lock renewed, augmentation, dropout and noise."""
    noise = gaussian_noise(0.01)
    lock = key_lock(("norm1", "norm2"), (5, 4), size=7)
    model = from_nnx(
        lambda rngs: DroppingBehindNorms(CLASSES, image_shape=SHAPE, rngs=rngs)
    )
    return fedavg(
        model,
        cross_entropy,
        optax.sgd(0.1),
        defence=chain(keylock(lock), noise, noise, at_update(noise)),
        local={"renew": new_private_key(lock), "augment": crop_and_flip(1)},
        layout=Layout("loop"),
    )


def fetch(ids):
    images = random_images(len(ids), STEPS, BATCH, *SHAPE)
    labels = np.zeros((len(ids), STEPS, BATCH), np.int32)
    valid = np.ones((len(ids), STEPS), bool)
    return Batches(images, labels, valid), np.ones(len(ids))


@pytest.mark.slow
def test_no_draw_of_rounds_is_made_twice():
    """All four functions are given one random key, as in the README."""
    with recorded_draws() as seen:
        rng, rounds = jax.random.key(0), everything_random()
        seen.take()
        server = jax.jit(rounds.init)(rng)
        init = seen.take()
        jax.jit(rounds.init_lock)(rng)
        lock = seen.take()
        clients = rounds.init_clients(rng, server, CLIENTS)
        private = seen.take()
        leaves = len(jax.tree.leaves(server.public))
        played = []
        for _ in range(ROUNDS):
            server, _ = rounds.run_round(
                rng, server, clients, np.arange(CLIENTS), fetch
            )
            played.append(seen.take())
        # The lock that all start from is drawn by whoever needs it, and the first
        # client's private key once more, for its shape. Nothing else is alike.
        lock_weights = derive_rng(rng, rounds_.PURPOSES, "defence")
        private_keys = derive_rng(rng, rounds_.PURPOSES, "clients")
        alike = lock_weights, jax.random.fold_in(private_keys, 0)
        assert sum(played, init + lock + private).used_twice(but=alike) == []
    assert init.used_twice() == lock.used_twice() == []
    assert len(lock.keys) == 8 and lock.keys < private.keys
    assert len(private.keys - lock.keys) == CLIENTS
    # In every step two for a shift, one for a reflection, two for masks, and noise on
    # every leaf, twice; noise on the update; a private key.
    each = STEPS * (2 + 1 + 2 + 2 * leaves) + leaves + 1
    for one in played:
        assert one.used_twice() == []
        assert len(one.draws) == sum(one.draws.values()) == CLIENTS * each


OWN = {
    "model": "outside_package:DroppingBehindNorms",
    "sites": ("norm1", "norm2"),
    "private_key_size": 7,
    "init": 0.0,
}
LOCKED = "keylock+gaussian-noise=.01+gaussian-noise=.02"
RANDOM_ROUNDS = OWN | {
    "arms": (LOCKED,),
    "fresh_private_keys": True,
    "augment": "crop_flip",
}


@pytest.mark.slow
def test_no_draw_of_a_training_is_made_twice():
    sizes = {"examples": 16, "public_examples": 10, "rounds": 2, "local_steps": 2}
    config = dataclasses.replace(RUN, **RANDOM_ROUNDS, **sizes, keep_rounds=())
    with recorded_draws() as seen:
        training.train(config)
        drawn = seen.take()
    keys = run_setup.random_keys(config)
    private_keys = derive_rng(keys.init, rounds_.PURPOSES, "clients")
    alike = (
        derive_rng(keys.init, rounds_.PURPOSES, "defence"),
        jax.random.fold_in(private_keys, 0),
        # Refits are compared on the same examples, in one order, with one mask a step.
        jax.random.split(keys.evaluation)[1],
    )
    assert drawn.used_twice(but=alike) == []
    families = {name(key) for key in keys}
    for key in drawn.keys:
        assert len(families & {*drawn.ancestors(key)}) == 1


# --- studies ---------------------------------------------------------------------

# Under dropout and noise; the attacker's own draws are as many as can be.
STUDY = OWN | {
    "image_size": 8,
    "victims": 2,
    "steps": 2,
    "restarts": 2,
    "threat": ("victim_norm=train", "attacker_norm=train"),
    "layout": Layout("loop"),
}


def drawn_by(config):
    with recorded_draws() as seen:
        study = build_study(config)
        seen.take()
        for job in study.attacks:
            run = map_victims(job.attack_one, config.layout, draws=job.client.draws)
            run(*job.inputs)
            yield seen.take()


FIXED_DRAWS = tuple(fixed_rng(purpose) for purpose in FIXED)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ("regress_private_key", "regress_gates"))
def test_no_draw_of_a_study_is_made_twice(strategy):
    config = LeakConfig(
        **STUDY, attack="matching", labels="joint", arms=(f"{LOCKED}/{strategy}",)
    )
    (drawn,) = drawn_by(config)
    assert drawn.used_twice(but=FIXED_DRAWS) == []
    # Three kernels, the private key and eight of the lock, two masks, and noise on the
    # six public leaves, twice; the attack's images and labels from two starts.
    each = 3 + 9 + 2 + 2 * 6 + 2 * 2
    assert len(without_fixed(drawn)) >= config.victims * each


@pytest.mark.slow
@pytest.mark.parametrize("several", ("observations", "average_clients"))
def test_no_draw_of_several_uploads_is_made_twice(several):
    options = {several: 3, "labels": "given", "arms": (f"{LOCKED}/known",)}
    config = LeakConfig(**STUDY | options, attack="matching")
    (drawn,) = drawn_by(config)
    assert drawn.used_twice(but=FIXED_DRAWS) == []
    # In each upload two masks, and noise on the six public leaves, twice.
    assert len(without_fixed(drawn)) >= config.victims * 3 * (2 + 2 * 6)


def without_fixed(drawn):
    fixed = {name(rng) for rng in FIXED_DRAWS}
    return {key for key in drawn.keys if not fixed & {*drawn.ancestors(key)}}


@pytest.mark.slow
@pytest.mark.parametrize("upload", UPLOADS)
def test_no_draw_of_a_captured_client_is_made_twice(tmp_path, upload):
    # Behind noise in each step, an update is trained once more without it, from the
    # same draws.
    arm = LOCKED if upload == "gradient" else LOCKED.replace("=", "@update=")
    begin(tmp_path / "run", **RANDOM_ROUNDS | {"arms": (arm,)})
    config = study(
        tmp_path / "run",
        **UPLOADS[upload],
        arms=(f"{arm}/regress_private_key",),
        attack="matching",
        steps=2,
    )
    (drawn,) = drawn_by(config)
    assert drawn.used_twice(but=FIXED_DRAWS) == []
    steps = config.local_steps or 1
    # In each step two for a shift, one for a reflection, and two masks; the private
    # key, and noise on the six public leaves, twice; the attack's images and its key.
    each = (2 + 1 + 2) * steps + 1 + 2 * 6 + 2
    assert len(without_fixed(drawn)) == config.victims * each
