"""Norm statistics as a prior: against NumPy, over one step and several."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from by_hand import convolve
from flax import nnx
from toys import quick_jit, random_weights, threat
from victims import CHANNELS, SITE, Small, digits, ground, update

from kljax.attacks import Candidate, Protocol
from kljax.attacks.priors import batch_statistics
from kljax.core.types import Gate
from kljax.models import Dense, from_nnx
from kljax.threat import observe

KNOWN = {"stats": "visible", "labels": "known", "victim_norm": "train"}


def prior_of(setting, gates=lambda public, lock: {}, **options):
    return batch_statistics(setting, gates, 0.5, **options)


def moments(images, public):
    """Gives mean and biased variance of the first convolution's outputs."""
    kernel, bias = (np.asarray(public.model[f"conv1/{n}"]) for n in ("kernel", "bias"))
    out = convolve(images, kernel) + bias
    return np.mean(out, (0, 1, 2)), np.var(out, (0, 1, 2))


def apart(guess, truth, public):
    pairs = zip(moments(guess, public), moments(truth, public), strict=True)
    return sum(np.linalg.norm(a - b) for a, b in pairs)


def value(prior, view, images):
    def of(view, images):
        return prior(view, Candidate(images, None, None), jnp.zeros(()))

    return float(quick_jit(of)(view, images))


TRUTH, _ = digits(2)
GUESS = np.random.default_rng(2).random(TRUTH.shape, np.float32)
DECLARED = threat("unit", "given", examples=2, **KNOWN)


@pytest.mark.parametrize(
    ("options", "factor"), [({}, 1.0), ({"emphasis": {SITE: 10.0}}, 10.0)]
)
def test_it_is_the_distance_of_batch_statistics(options, factor):
    """The momentum, 0.8 here, is found and not told."""
    seen = update(2, train=True)
    view = observe(DECLARED, seen)
    prior = prior_of(ground(DECLARED), **options)
    expected = 0.5 * factor * apart(GUESS, TRUTH, seen.public)
    assert value(prior, view, GUESS) == pytest.approx(expected, rel=1e-4)
    assert value(prior, view, TRUTH) < 1e-4 * expected


def test_it_has_the_gradient_of_its_formula():
    """By differences: a network's own statistics may have no derivative at all."""
    seen = update(2, train=True)
    prior, view = prior_of(ground(DECLARED)), observe(DECLARED, seen)

    def of(images):
        return prior(view, Candidate(images, None, None), jnp.zeros(()))

    slope = quick_jit(jax.grad(of))(GUESS)
    direction = np.random.default_rng(3).standard_normal(GUESS.shape)
    near = [apart(GUESS + s * direction, TRUTH, seen.public) for s in (-1e-4, 1e-4)]
    expected = 0.5 * (near[1] - near[0]) / 2e-4
    assert np.sum(slope * direction) == pytest.approx(expected, rel=1e-3)


def test_gates_do_not_hide_what_is_in_front_of_them():
    seen = update(2, train=True)
    gate = Gate(jnp.zeros(CHANNELS), jnp.ones(CHANNELS))
    locked = prior_of(ground(DECLARED), lambda public, lock: {SITE: gate})
    expected = 0.5 * apart(GUESS, TRUTH, seen.public)
    found = value(locked, observe(DECLARED, seen), GUESS)
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("updated", (False, True))
def test_several_steps_weigh_the_last_batch_most(updated):
    """Statistics of two batches of one, m (m s + (1-m) b1) + (1-m) b2."""
    declared = threat("unit", "given", examples=2, upload="update", **KNOWN)
    protocol = Protocol(optax.sgd(0.1), steps=2, batch=1, learning_rate=0.1)
    setting = ground(declared, protocol=protocol)
    seen = update(2, train=True)
    change = jax.tree.map(lambda leaf: 0.3 * leaf, seen.sent)
    network = seen.public
    if updated:
        network = jax.tree.map(jnp.add, network, change)
    kept = 0.8
    old = [np.asarray(seen.stats[f"{SITE}/{n}"]) for n in ("mean", "var")]

    def after(images):
        stats = old
        for image in images:
            batch = moments(image[None], network)
            stats = [
                kept * s + (1 - kept) * b for s, b in zip(stats, batch, strict=True)
            ]
        return stats

    new = dict(zip((f"{SITE}/mean", f"{SITE}/var"), after(TRUTH), strict=True))
    new = {name: np.float32(leaf) for name, leaf in new.items()}
    view = observe(DECLARED, seen)._replace(grads=change, new_stats=new)
    pairs = zip(after(GUESS), after(TRUTH), strict=True)
    expected = 0.5 * sum(np.linalg.norm(a - b) for a, b in pairs) / (1 - kept**2)
    prior = prior_of(setting, updated=updated)
    assert value(prior, view, GUESS) == pytest.approx(expected, rel=1e-4)
    assert value(prior, view, TRUTH) < 1e-3 * expected


class Frozen(Small):
    """Keeps its running statistics, in one norm or in both, in train mode too."""

    def __init__(self, rngs, *, both):
        super().__init__(rngs)
        self.other, self.both = nnx.BatchNorm(12, momentum=0.8, rngs=rngs), both

    def __call__(self, images):
        x = nnx.sigmoid(self.norm(self.conv1(images), use_running_average=self.both))
        again = nnx.remat(lambda norm, x: norm(x, use_running_average=True))
        x = nnx.sigmoid(again(self.other, self.conv2(x)))
        return self.fc(x.reshape(x.shape[0], -1))


class Unmoved(Small):
    """Keeps its running statistics by a momentum of 1."""

    def __init__(self, rngs):
        super().__init__(rngs)
        self.norm.momentum = 1.0


def test_norms_that_keep_their_statistics_say_nothing():
    with pytest.raises(ValueError, match="norm layers norm, other keep their running"):
        build = functools.partial(Frozen, both=True)
        prior_of(ground(DECLARED, model=from_nnx(build)))
    with pytest.raises(ValueError, match="norm layers norm keep their running"):
        prior_of(ground(DECLARED, model=from_nnx(Unmoved)))
    half = from_nnx(functools.partial(Frozen, both=False))
    params, stats = random_weights(half)
    seen = update(2, train=True)
    view = observe(DECLARED, seen)
    own = {name: view.public.model[name] for name in params if "conv1" in name}
    view = view._replace(
        public=view.public._replace(model={**params, **own}),
        stats=stats | view.stats,
        new_stats=stats | view.new_stats,
    )
    expected = 0.5 * apart(GUESS, TRUTH, seen.public)
    found = value(prior_of(ground(DECLARED, model=half)), view, GUESS)
    assert found == pytest.approx(expected, rel=1e-4)


def test_a_network_without_norms_has_no_such_distance():
    def build(rngs):
        return Dense(10, image_shape=(8, 8, 1), widths=(), rngs=rngs)

    view = observe(DECLARED, update(2, train=True))
    model = from_nnx(build)
    params, _ = quick_jit(model.init)(jax.random.key(0, impl="unsafe_rbg"))
    view = view._replace(
        public=view.public._replace(model=params), stats={}, new_stats={}
    )
    assert value(prior_of(ground(DECLARED, model=model)), view, GUESS) == 0


@pytest.mark.parametrize(
    ("facts", "options", "message"),
    [
        ({"stats": "hidden"}, {}, "stats='hidden', and 'visible' is needed"),
        ({}, {"updated": True}, "updated=True needs upload='update'.*'gradient'"),
    ],
)
def test_what_cannot_be_known_is_refused_when_the_prior_is_made(
    facts, options, message
):
    declared = threat("unit", "given", examples=2, **(KNOWN | facts))
    with pytest.raises(ValueError, match=message):
        prior_of(ground(declared), **options)


def test_a_negative_weight_is_refused():
    with pytest.raises(ValueError, match="weight must be >= 0, got -1"):
        batch_statistics(ground(DECLARED), lambda public, lock: {}, -1.0)
