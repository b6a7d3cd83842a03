"""Small undefended victims, on which an attack succeeds or fails in seconds.

A digit of 8x8 pixels, and a network whose gradient says more than 64 numbers about it:
a convolution, a norm (which a lock may gate), a convolution, a classifier.
"""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from sklearn.datasets import load_digits
from toys import quick_jit, random_weights, replace_fields, setting_of, threat

from kljax.attacks import Attack, Reconstruction, Setting, Task
from kljax.core.inputs import images_of
from kljax.core.targets import classes_of
from kljax.core.types import Private, Public
from kljax.defences import Defence, none
from kljax.federated.clients import one_step
from kljax.models import from_nnx
from kljax.models.losses import cross_entropy
from kljax.threat import ThreatModel, Update, observe

IMAGE_SHAPE = (8, 8, 1)
CLASSES = 10
SITE = "norm"
CHANNELS = 6


class Small(nnx.Module):
    """Convolution, norm, sigmoid, convolution, sigmoid, classifier."""

    def __init__(self, rngs: nnx.Rngs):
        pads = ((1, 1), (1, 1))
        self.conv1 = nnx.Conv(1, CHANNELS, (3, 3), padding=pads, rngs=rngs)
        self.norm = nnx.BatchNorm(
            CHANNELS, use_scale=False, use_bias=False, momentum=0.8, rngs=rngs
        )
        self.conv2 = nnx.Conv(
            CHANNELS, 12, (3, 3), strides=(2, 2), padding=pads, rngs=rngs
        )
        self.fc = nnx.Linear(12 * 16, CLASSES, rngs=rngs)

    def __call__(self, images):
        x = nnx.sigmoid(self.norm(self.conv1(images)))
        x = nnx.sigmoid(self.conv2(x))
        return self.fc(x.reshape(x.shape[0], -1))


@functools.cache
def model():
    return from_nnx(Small)


def digits(count: int):
    """Gives the first digits [count, 8, 8, 1] in [0, 1], and their targets."""
    images, labels = load_digits(return_X_y=True)
    images = (images[:count] / 16).reshape(count, *IMAGE_SHAPE).astype(np.float32)
    return images, np.eye(CLASSES, dtype=np.float32)[labels[:count].astype(int)]


def ground(threat: ThreatModel, defence: Defence | None = None, **changes) -> Setting:
    """Makes the setting of an attack on the small network."""
    defence = none() if defence is None else defence
    task = Task(
        model(), cross_entropy, images_of(IMAGE_SHAPE), classes_of(CLASSES), "fc"
    )
    setting = setting_of(task, threat, defence, ((SITE, CHANNELS),))
    return replace_fields(setting, **changes)


@functools.cache
def update(examples: int = 1, seed: int = 0, train: bool = False) -> Update:
    """Runs one client without a defence."""
    params, stats = random_weights(model(), seed)
    step = one_step(model(), cross_entropy, none(), train=train)
    return quick_jit(step)(
        jax.random.key(seed), Public(params), stats, Private(), *digits(examples)
    )


class Case(NamedTuple):
    """An attack, and what it is told.

    Attributes:
      build: ``Setting -> Attack``.
      examples: in the gradient.
      labels: strategy.
      train: norm mode of both sides.
      facts: of the threat model, beyond those that follow from the rest.
    """

    build: Callable[[Setting], Attack]
    examples: int = 1
    labels: str = "given"
    train: bool = False
    facts: Mapping[str, str] = MappingProxyType({})


def declare(case: Case) -> ThreatModel:
    """Makes the threat model of a case."""
    mode = "train" if case.train else "eval"
    known = {"labels": "known"} if case.labels == "given" else {}
    facts = {"examples": case.examples, "victim_norm": mode, "attacker_norm": mode}
    return threat("unit", case.labels, **facts, **known, **case.facts)


def compiled(case: Case) -> Callable[[Update], Reconstruction]:
    """Observes and attacks, in one compiled function."""
    declared = declare(case)
    attack = case.build(ground(declared))
    return quick_jit(lambda truth: attack(jax.random.key(8), observe(declared, truth)))


def error_of(found: Reconstruction, truth: Update) -> float:
    """Averages the squared error of images clipped to [0, 1], in their order."""
    return float(np.mean((np.clip(found.inputs, 0, 1) - truth.inputs) ** 2))


def drown(tree):
    """Puts noise on arrays, thirty times each one's root mean square."""
    generator = np.random.default_rng(3)

    def disturb(leaf):
        size = 30 * np.sqrt(np.mean(np.square(leaf)))
        return leaf + (size * generator.standard_normal(leaf.shape)).astype(np.float32)

    return jax.tree.map(disturb, tree)


def drowned(truth: Update) -> Update:
    """Drowns the gradient in noise."""
    return truth._replace(sent=drown(truth.sent))


def hide_some(tree):
    """Puts NaN in a fifth of all entries, as a view has where it hides them."""
    generator = np.random.default_rng(4)

    def hide(leaf):
        return np.where(generator.random(leaf.shape) < 0.2, np.float32(np.nan), leaf)

    return jax.tree.map(hide, tree)


def filled(truth: Update, value: float) -> Update:
    """Puts one value into the whole gradient."""
    return truth._replace(
        sent=jax.tree.map(lambda leaf: np.full_like(leaf, value), truth.sent)
    )
