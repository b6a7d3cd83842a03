"""Small studies that several test files share, and how they are compiled quickly."""

import contextlib
import functools

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from toys import setting_of

from kljax import defences, metrics, threat
from kljax.attacks import Reconstruction, Task
from kljax.attacks.optimisers import OPTIMISERS
from kljax.attacks.presets import matching
from kljax.core.inputs import images_of
from kljax.core.targets import classes_of
from kljax.core.types import Private, Public
from kljax.defences import arms
from kljax.defences.lock import key_lock
from kljax.federated import clients
from kljax.models import Dense, from_nnx, losses
from kljax.parallel import Layout, Timing
from kljax.studies import cost, devices, leakage, scoring
from kljax.studies.builder.generator import find_generator
from kljax.studies.builder.victims import choose_victims, load_victim_data
from kljax.studies.config import LeakConfig

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


@contextlib.contextmanager
def compiled_once(folder):
    """Compiles quickly, and what many runs share only once: it is kept in a folder."""
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    try:
        with quick_compilation():
            yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def tiny(**changes) -> LeakConfig:
    """Makes a study of seconds."""
    return LeakConfig(**(TINY | changes))


def study(**changes) -> leakage.LeakResult:
    """Runs a study of seconds."""
    with quick_compilation():
        return leakage.leak(tiny(**changes))


def scored(result: leakage.LeakResult) -> list[scoring.Row]:
    """Scores a study without LPIPS, whose networks take ten seconds to compile."""
    available = metrics.lpips_available
    metrics.lpips_available = lambda: False
    try:
        with quick_compilation():
            return scoring.score_rows(result)
    finally:
        metrics.lpips_available = available


@functools.cache
def finished() -> tuple[leakage.LeakResult, list[scoring.Row]]:
    """Runs and scores one study of several arms, once for all tests."""
    result = study(
        victims=5,
        steps=100,
        arms=(
            "none",
            "gaussian-noise=0.1",
            "keylock/known",
            "keylock/regress_gates",
        ),
    )
    return result, scored(result)


SHAPE = (8, 8, 3)


def lone_attack(**steps: int):
    """Makes real attacks on one victim, ``(index, params, image, label) -> ...``.

    Args:
      steps: number of steps by name of the optimiser, all in one compilation.

    Its weights come from NumPy: most of a small study's compilation is the drawing
    of weights, and that is not what these tests are about.
    """
    model = from_nnx(lambda rngs: Dense(10, image_shape=SHAPE, widths=(24,), rngs=rngs))
    strategy = threat.Strategy(secret="unit", labels="recovered")
    declared = threat.least_knowledge(strategy)
    defence = defences.none()
    task = Task(model, losses.cross_entropy, images_of(SHAPE), classes_of(10), "fc")
    setting = setting_of(task, declared, defence)
    attacks = {
        name: matching(setting, OPTIMISERS[name](), steps=count, restarts=1)
        for name, count in steps.items()
    }
    step = clients.one_step(model, setting.task.loss, defence, train=True)

    def one(index, params, image, label):
        rng = jax.random.fold_in(jax.random.key(0), index)
        targets = jax.nn.one_hot(label[None], 10)
        update = step(rng, Public(params), {}, Private(), image[None], targets)
        view = threat.observe(declared, update)
        found = {name: attack(rng, view) for name, attack in attacks.items()}
        return {
            name: {"image": result.inputs[0], "loss": result.loss}
            for name, result in found.items()
        }

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


def pretended(config: LeakConfig, guesses, **facts) -> leakage.LeakResult:
    """Makes a finished study of what an attack is pretended to have found.

    Args:
      config: the study; nothing of it is run.
      guesses: ``(arm, victims) -> images [N, B, H, W, C]``.
      facts: ``labels`` [N, B] (the true ones if not given), ``loss``, ``finite``,
        ``loss_at_truth``, ``loss_scale``, ``live_channels``, ``feature_error``,
        ``replay_is_exact``, ``label_rule_holds``, ``visible_share`` [N],
        ``numbers``.
    """
    dataset = load_victim_data(config)
    victims, _ = choose_victims(config, dataset, find_generator(config))
    each = np.ones(config.victims, np.float32)
    results = []
    for text in config.arms:
        arm = arms.parse_arm(text, sites_of("layers/0"), {})
        strategy = threat.Strategy(secret=arm.secret_strategy, labels="given")
        spent = np.full(config.victims, config.restarts * config.steps)
        found = Reconstruction(
            inputs=guesses(text, victims),
            labels=facts.get("labels", victims.labels),
            loss=facts.get("loss", each),
            finite=facts.get("finite", each > 0),
            numbers=facts.get("numbers", {"evaluations": spent}),
        )
        attacked = leakage.Attacked(
            found,
            facts.get("loss_at_truth", 0 * each),
            facts.get("loss_scale", each),
            facts.get("live_channels", 0 * each.astype(int)),
            facts.get("feature_error", 0 * each),
            facts.get("replay_is_exact", each > 0),
            facts.get("label_rule_holds", np.nan * each),
            facts.get("visible_share", each**0),
        )
        declared = threat.least_knowledge(strategy, examples=config.examples)
        timing = Timing(compile_s=1.5, run_s=0.5, compilations=3)
        results.append(leakage.ArmResult(arm, declared, attacked, timing))
    return leakage.LeakResult(config, dataset, victims, results)


def close(text, victims):
    """Guesses every image almost."""
    noise = np.random.default_rng(7).normal(size=victims.inputs.shape)
    return (victims.inputs + 0.02 * noise).astype(np.float32)


def wrong(text, victims):
    """Guesses noise."""
    noise = np.random.default_rng(7).random(victims.inputs.shape)
    return noise.astype(np.float32)


def made_up_device(monkeypatch):
    """Saves the calibration of this machine's device, and the user's cache from it."""
    device = cost.Device("made up", 1e11, 10, 3e10, 1e10, 2**20, 1e-6, "a test", "cpu")
    monkeypatch.setattr(devices, "this_device", lambda *given: device)
