"""Sizes: memory that a study or a training surely takes, from shapes alone.

Bounds from below, see `kljax.core.memory`: what must be there at one time, whatever the
compiler makes of it. Letters: P bytes of a network's parameters, I bytes of a victim's
images, L bytes of the weights of a lock.
"""

import math

import jax
import numpy as np
import optax

from kljax.core.memory import check_fits, device_memory, machine_memory
from kljax.core.types import Model, PyTree
from kljax.defences.arms import Arm
from kljax.parallel import Layout
from kljax.studies.builder import run_setup
from kljax.studies.builder.run_setup import Prepared
from kljax.studies.config import LeakConfig


def check_attack(
    config: LeakConfig,
    arm: Arm,
    model: Model,
    image_shape: tuple[int, ...],
    *,
    searched: bool,
    layout: Layout | None = None,
) -> None:
    """Refuses an attack on an arm that surely does not fit.

    A victim has its network, its lock and its images, P + L + I, but that all
    victims of a run are one client, with one lock. Each restart of a
    search has a candidate, its gradient and the gradient that it would upload,
    2 I + P.

    Args:
      config: the study.
      arm: of it.
      model: the arm's network.
      image_shape: [H, W, C] of one image.
      searched: whether the attack has restarts; a closed form has none.
      layout: how victims are run; None for one at a time.

    Raises:
      ValueError: with the numbers, and the options to lower.
    """
    params = jax.eval_shape(model.init, jax.random.key(0))
    held = jax.eval_shape(arm.defence.init, jax.random.key(0), params[0])
    images = 4 * config.examples * math.prod(image_shape)
    network, lock = nbytes(params), nbytes(held)
    if config.from_run is not None:
        lock = 0  # there once, as it was when the run was trained
    search = config.restarts * (2 * images + network) if searched else 0
    parts = {
        "private_key_size or the number of sites": lock,
        "image_size, or take a smaller model": network,
        "image_size or examples": images,
        "restarts": search,
    }
    _check_block(
        layout or Layout("loop"),
        config.victims,
        network + lock + images + search,
        f"victims of arm {arm.name!r}",
        _largest(parts),
    )
    # Truths, and what each arm finds.
    sets = 1 + len(config.arms)
    check_fits(
        config.victims * images * sets,
        f"the images of {config.victims} victims",
        "victims, examples or image_size",
    )


def check_training(prepared: Prepared) -> None:
    """Refuses a training that surely does not fit.

    Every client has a private key, the weights of its lock and the state of its
    optimiser; those at work have the batches of a whole round.

    Raises:
      ValueError: with the numbers, and the options to lower.
    """
    config, rng = prepared.config, jax.random.key(0)
    for name, arm in prepared.arms.items():
        params, _ = jax.eval_shape(prepared.models[arm.norm].init, rng)
        _, private = jax.eval_shape(arm.defence.init, rng, params)
        kept = nbytes(private)
        if not config.reset_optimiser:
            kept += nbytes(
                jax.eval_shape(_optimiser(prepared).init, (params, private.trainable))
            )
        rule, cohort = prepared.aggregator, run_setup.cohort_size(config)
        if rule.gathers:
            model = prepared.models[arm.norm]
            check_fits(
                cohort * nbytes(jax.eval_shape(model.init, rng)),
                f"the uploads of {cohort} clients, which {rule.name} has side by side,",
                "cohort, or take an aggregator that adds up, mean or norm-bounding",
                device_memory(),
            )
        check_fits(
            config.clients * kept,
            f"the states of {config.clients} clients of arm {name!r}",
            "clients, private_key_size or the number of sites",
        )
    image = 4 * math.prod(prepared.train.shape)
    check_fits(
        image * len(prepared.test), "the test images", "test_examples or image_size"
    )
    _check_block(
        config.layout,
        config.cohort or config.clients,
        prepared.steps * config.batch * image,
        f"clients, whose rounds have {prepared.steps} batches of {config.batch},",
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


def _optimiser(prepared: Prepared) -> optax.GradientTransformation:
    found = run_setup.local_optimiser(prepared.config)
    # One whose learning rate drops is made for a round.
    return found if isinstance(found, optax.GradientTransformation) else found(0)


def nbytes(tree: PyTree) -> int:
    """Counts the bytes of arrays or of their shapes."""
    # Typed random keys have no size of their own.
    return sum(
        math.prod(leaf.shape) * getattr(np.dtype(leaf.dtype), "itemsize", 4)
        for leaf in jax.tree.leaves(tree)
    )
