"""Sizes: memory that a study or a training surely takes, from shapes alone.

Bounds from below, see `kljax.core.memory`: what must be there at one time, whatever the
compiler makes of it. Letters: P bytes of what is trained in public, a network's
parameters and those of a module that a defence inserts, I bytes of a victim's inputs,
L bytes of what a defence hides, such as the weights of a lock, T local steps of B of
the n inputs.
"""

import math

import jax
import numpy as np
import optax

from kljax.attacks import Evolution
from kljax.attacks.drivers.population import SIDE_BY_SIDE
from kljax.attacks.optimisers import make_optimiser
from kljax.attacks.presets import Preset
from kljax.core.generator import Generator
from kljax.core.memory import check_fits, device_memory, machine_memory
from kljax.core.types import Model, PyTree
from kljax.defences.arms import Arm
from kljax.parallel import Layout
from kljax.studies.builder import run_setup
from kljax.studies.builder.attack_options import parse_options
from kljax.studies.builder.run_setup import RunSetup
from kljax.studies.config import LeakConfig


def check_attack(
    config: LeakConfig,
    preset: Preset,
    generator: Generator | None,
    arm: Arm,
    model: Model,
    entries: int,
    layout: Layout | None = None,
) -> None:
    """Refuses an attack on an arm that surely does not fit.

    A victim has its network, its lock and its inputs, P + L + I, but that all
    victims of a run are one client, with one lock; the batches of all T steps of
    an update, T B / n I; and the weights of the attacker's generator. Each restart of a
    search has a candidate, its gradient and the gradient that it would upload,
    2 I + P, one P for each observation, and on the way back through an update the
    parameters of every step, T P. A population has I + P per candidate that is
    evaluated beside others, and the state of its strategy.

    Args:
      config: the study.
      preset: the attack; a closed form has no restarts.
      generator: that the attacker has.
      arm: of the study.
      model: the arm's network.
      entries: of one example, such as H x W x C of an image.
      layout: how victims are run; None for one at a time.

    Raises:
      ValueError: with the numbers, and the options to lower.
    """
    params = jax.eval_shape(model.init, jax.random.key(0))
    public, private = jax.eval_shape(arm.defence.init, jax.random.key(0), params[0])
    image, clients = 4 * entries, config.average_clients or 1
    images, lock = config.victim_examples * image, clients * nbytes(private)
    network = nbytes(params) + nbytes(public)
    if config.from_run is not None:
        lock = 0  # there once, as it was when the run was trained
    steps = config.local_steps if config.upload == "update" else 0
    restart, lower = 2 * images + config.observations * network, "restarts"
    if config.observations > 1:
        lower = "observations or restarts"
    weights = 0 if generator is None else nbytes(generator.weights)
    evolution = _find_evolution(config, preset)
    if evolution is not None:
        together = min(evolution.population, SIDE_BY_SIDE)
        restart = together * (images + network)
        restart += _state_bytes(config, evolution, generator)
        lower = "restarts, the optimiser's population or the generator's latents"
    elif steps and _replays_steps(config, preset):
        restart += steps * (nbytes(params[0]) + nbytes(public))
        lower = "local_steps or restarts"
    restart += config.snapshots * images
    parts = {
        "private_key_size or the number of sites": lock,
        "image_size, or take a smaller model or inserted module": network,
        "image_size or examples": images,
        "local_steps or batch": steps * (config.batch or 0) * image,
        "the size of the generator": weights,
        lower: config.restarts * restart if preset.objective is not None else 0,
    }
    _check_block(
        layout or Layout("loop"),
        config.victims,
        sum(parts.values()),
        f"victims of arm {arm.name!r}",
        _largest(parts),
    )
    # Truths, and what each arm finds and has found on the way.
    sets = 1 + len(config.arms) * (1 + config.snapshots)
    check_fits(
        config.victims * images * sets,
        f"the inputs of {config.victims} victims",
        "victims, examples, image_size or snapshots",
    )


def _find_evolution(config: LeakConfig, preset: Preset) -> Evolution | None:
    """Finds what asks for populations, where the attack tries them."""
    if config.optimiser is None:
        return None if preset.evolution is None else preset.evolution()
    optimiser = make_optimiser(config.optimiser, config.step_size)
    return optimiser if isinstance(optimiser, Evolution) else None


def _state_bytes(
    config: LeakConfig, evolution: Evolution, generator: Generator | None
) -> int:
    """Counts what a strategy remembers of its generations, such as a covariance."""
    if generator is None:
        return 0  # nobody says here how long the vectors are
    start = jax.ShapeDtypeStruct(
        (config.victim_examples * generator.latents,), np.float32
    )
    return nbytes(jax.eval_shape(evolution.init, jax.random.key(0), start))


def _replays_steps(config: LeakConfig, preset: Preset) -> bool:
    """Tells whether a search surely goes back through every step of a candidate."""
    if not preset.replays_steps:
        return False
    if ":" in config.attack:
        return False  # nobody says what an attack of one's own simulates
    options = parse_options(config.attack_options, config.attack, preset)
    # Others of fedavg-inversion's variants have fewer steps of their own.
    return options.get("variant", "full") in ("full", "full_many")


def check_training(setup: RunSetup) -> None:
    """Refuses a training that surely does not fit.

    Every client has a private key, the weights of its lock and the state of its
    optimiser; those at work have the batches of a whole round.

    Raises:
      ValueError: with the numbers, and the options to lower.
    """
    config, rng = setup.config, jax.random.key(0)
    for name, arm in setup.arms.items():
        params, _ = jax.eval_shape(setup.task.models[arm.norm].init, rng)
        public, private = jax.eval_shape(arm.defence.init, rng, params)
        state = nbytes(private)
        if not config.reset_optimiser:
            state += nbytes(
                jax.eval_shape(_optimiser(setup).init, (params, private.trainable))
            )
        rule, cohort = setup.aggregator, run_setup.cohort_size(config)
        if rule.gathers:
            model = setup.task.models[arm.norm]
            check_fits(
                cohort * (nbytes(jax.eval_shape(model.init, rng)) + nbytes(public)),
                f"the uploads of {cohort} clients, which {rule.name} has side by side,",
                "cohort, or take an aggregator that adds up, mean or norm-bounding",
                device_memory(),
            )
        start = jax.eval_shape(run_setup.arm_rounds(setup, name).rounds.init, rng)
        check_fits(
            nbytes(start.aggregator),
            f"what {rule.name} remembers of {config.clients} clients",
            "clients, or take another aggregator",
            device_memory(),
        )
        if setup.encryption is not None:
            entries = nbytes(jax.eval_shape(setup.task.models[arm.norm].init, rng)) // 4
            # As sent, and in float64 to be encrypted; a mask of bytes.
            check_fits(
                cohort * entries * (4 + 8 + 1),
                f"the uploads of {cohort} clients, which are encrypted together,",
                "cohort, or leave encryption out",
            )
        check_fits(
            config.clients * state,
            f"the states of {config.clients} clients of arm {name!r}",
            "clients, private_key_size or the number of sites",
        )
    image = 4 * setup.task.dataset.input_spec.entries
    check_fits(
        image * len(setup.test), "the test inputs", "test_examples or image_size"
    )
    _check_block(
        config.layout,
        config.cohort or config.clients,
        setup.steps * config.batch * image,
        f"clients, whose rounds have {setup.steps} batches of {config.batch},",
        "local_epochs, local_steps, batch or image_size",
        whole=True,
    )


def _check_block(
    layout: Layout, count: int, each: int, what: str, lower: str, whole: bool = False
) -> None:
    """Checks those that are at work at one time.

    Args:
      whole: whether a looped layout has all of its chunk there at one time.
    """
    devices = jax.local_device_count() if layout.spread else 1
    block = layout.block(count, jax.local_device_count())
    if layout.looped and not whole:
        block = min(block, devices)
    have = device_memory()
    if have != machine_memory():  # of each device its own
        have *= devices
    lower = f"{lower}, or layout.chunk" if block > devices else lower
    if block == 1:
        what = f"victim{what.removeprefix('victims')}" if not whole else what
    check_fits(block * each, f"{block} {what}", lower, have)


def _largest(parts: dict[str, int]) -> str:
    return max(parts, key=lambda name: parts[name])


def _optimiser(setup: RunSetup) -> optax.GradientTransformation:
    optimiser = run_setup.local_optimiser(setup.config)
    # One whose learning rate drops is made for a round.
    return (
        optimiser
        if isinstance(optimiser, optax.GradientTransformation)
        else optimiser(0)
    )


def nbytes(tree: PyTree) -> int:
    """Counts the bytes of arrays or of their shapes."""
    # Typed random keys have no size of their own.
    return sum(
        math.prod(leaf.shape) * getattr(np.dtype(leaf.dtype), "itemsize", 4)
        for leaf in jax.tree.leaves(tree)
    )
