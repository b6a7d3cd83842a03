"""Small studies that several test files share, and how they are compiled quickly."""

import contextlib
import functools

import jax
import numpy as np

from kljax import arms, clients, defences, leakage, losses, scoring, threat
from kljax.attacks import Setting
from kljax.attacks.presets import OPTIMISERS, matching
from kljax.keylock import key_lock
from kljax.leakage import LeakConfig
from kljax.mapping import Layout
from kljax.models import Dense, from_nnx
from kljax.typing import Private, Public

TINY = {
    "model": "dense",
    "image_size": 8,
    "victims": 3,
    "steps": 4,
    "private_key_size": 16,
    "optimiser": "adam",
    "arms": ("none",),
    "layout": Layout("chunked", 4),
}


@contextlib.contextmanager
def quick_compilation():
    """Skips the compiler's optimisation, which is most of a small study's time."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


def tiny(**changes) -> LeakConfig:
    """Makes a study of seconds."""
    return LeakConfig(**(TINY | changes))


def study(**changes) -> leakage.LeakResult:
    """Runs a study of seconds."""
    with quick_compilation():
        return leakage.leak(tiny(**changes))


@functools.cache
def finished() -> tuple[leakage.LeakResult, list[scoring.Row]]:
    """Runs and scores one study of many arms, once for all tests."""
    result = study(
        victims=5,
        steps=40,
        optimiser=None,
        arms=(
            "none",
            "gaussian-noise=0.1",
            "magnitude-pruning=0.3",
            "norm-clipping=0.5",
            "keylock/known",
            "keylock/regress_gates",
        ),
    )
    with quick_compilation():
        return result, scoring.score_rows(result)


SHAPE = (8, 8, 3)


def lone_attack(optimiser: str, steps: int):
    """Makes a real attack on one victim, ``(index, params, image, label) -> ...``.

    Its weights come from NumPy: most of a small study's compilation is the drawing
    of weights, and that is not what these tests are about.
    """
    model = from_nnx(lambda rngs: Dense(10, image_shape=SHAPE, widths=(24,), rngs=rngs))
    strategy = threat.Strategy(lock="unit", labels="recovered")
    declared = threat.least_knowledge(strategy)
    defence = defences.none()
    setting = Setting(
        model=model,
        loss=losses.cross_entropy,
        gates=defence.gates,
        simulate=defence.simulate,
        image_shape=SHAPE,
        num_classes=10,
        classifier="fc",
        sites=(),
        threat=declared,
    )
    attack = matching(setting, OPTIMISERS[optimiser](), steps=steps, restarts=1)
    step = clients.one_step(model, setting.loss, defence, train=True)

    def one(index, params, image, label):
        rng = jax.random.fold_in(jax.random.key(0), index)
        targets = jax.nn.one_hot(label[None], 10)
        update = step(rng, Public(params), {}, Private(), image[None], targets)
        found = attack(rng, threat.observe(declared, update))
        return {"image": found.images[0], "loss": found.loss}

    return one


def lone_victims(count: int):
    """Draws the arguments of `lone_attack` for many victims; more begin with fewer."""
    columns = {
        "layers/0/kernel": (192, 24),
        "layers/0/bias": (24,),
        "fc/kernel": (24, 10),
        "fc/bias": (10,),
    }

    def draw(seed):
        generator = np.random.default_rng(seed)
        params = {
            name: generator.uniform(-0.5, 0.5, shape).astype(np.float32)
            for name, shape in columns.items()
        }
        return seed, params, generator.random(SHAPE, np.float32), seed % 10

    return jax.tree.map(lambda *leaves: np.stack(leaves), *map(draw, range(count)))


def sites_of(*paths: str) -> arms.Sites:
    """Makes the sites of a lock on layers of 4 channels."""
    widths = (4,) * len(paths)
    return arms.Sites(paths, widths, key_lock(paths, widths, size=8))
