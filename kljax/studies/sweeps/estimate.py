"""What a sweep will take, estimated by a few seconds of it."""

import dataclasses
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from kljax.models.convolution import choose_form
from kljax.parallel import Layout, block_memory, fastest_layout, map_victims
from kljax.studies.builder.study import ArmAttack, build_study
from kljax.studies.config import LeakConfig
from kljax.studies.cost import Cost, Device, chunk_operations, predict
from kljax.studies.store.manifest import Group, plan

SECONDS = 60.0  # what a probe may take
STEPS = 5  # evaluations per restart that are run and timed


class Estimate(NamedTuple):
    """What a sweep will take on this machine, roughly.

    Attributes:
      groups: how many groups compile together, and how many of them were probed.
      compilations: programs to compile, draws of networks and defences included.
      compile_s: seconds to compile them, without a warm cache.
      run_s: seconds to run all victims; scoring and reports not included.
      memory: bytes of the largest block that was probed, all local devices together.
    """

    groups: tuple[int, int]
    compilations: int
    compile_s: float
    run_s: float
    memory: int


class _Probed(NamedTuple):
    per_victim: float  # seconds, of a closed form; 0 for a search
    per_evaluation: float  # seconds, one victim; 0 for a closed form
    compile_s: float
    programs: int
    memory: int


def estimate_sweep(
    manifest: dict[str, Any], *, layout: Layout | None = None, seconds: float = SECONDS
) -> Estimate:
    """Estimates what a sweep takes: compiles and runs a few steps of its groups.

    Groups that the seconds do not suffice for count as the mean of those probed. The
    time of an evaluation is that of a short attack. An attack that reports no
    evaluations, a closed form, takes the same time whatever the steps.

    Args:
      manifest: of the study, which need not be written.
      layout: how victims are laid over the machine; None for `fastest_layout`.
      seconds: after which no further group is probed; the first always is.

    Raises:
      ValueError: for anything in a cell that does not exist or does not fit.
    """
    groups = plan(manifest)
    layout = layout or fastest_layout("victims")
    start, probed = time.perf_counter(), []
    for group in groups:
        if probed and time.perf_counter() - start > seconds:
            break
        probed.append(_probe(group, layout))
    mean = _Probed(*(float(np.mean(column)) for column in zip(*probed, strict=True)))
    run_s, padded = 0.0, probed + [mean] * (len(groups) - len(probed))
    for group, one in zip(groups, padded, strict=True):
        for cell in group.cells:
            spent = cell.config.steps * cell.config.restarts
            seconds_each = one.per_victim + spent * one.per_evaluation
            run_s += cell.config.victims * seconds_each
    return Estimate(
        (len(groups), len(probed)),
        round(sum(one.programs for one in padded)),
        sum(one.compile_s for one in padded),
        run_s,
        max(one.memory for one in probed),
    )


def settle_convolution(config: LeakConfig, device: Device) -> LeakConfig:
    """Names the form of convolution that ``auto`` is on a device."""
    if config.convolution != "auto":
        return config
    return dataclasses.replace(config, convolution=choose_form(device.backend))


def predict_attack(
    config: LeakConfig, attack: ArmAttack, layout: Layout, device: Device
) -> Cost:
    """Predicts what a victim of an arm takes on one device, by the cost model.

    Nothing is compiled or run. A full chunk is traced, and its cost divided.

    Raises:
      ValueError: for an attack that learns first, see `_refuse_learning`.
    """
    _refuse_learning(config, attack)
    with jax.default_matmul_precision(config.precision):
        operations = chunk_operations(
            attack.attack_one, layout, attack.inputs, draws=attack.client.draws
        )
    return Cost(*(number / layout.chunk for number in predict(operations, device)))


def predict_sweep(
    manifest: dict[str, Any], layout: Layout, device: Device
) -> tuple[float, float]:
    """Predicts a sweep by the cost model: s per victim on one device, s in all.

    Raises:
      ValueError: for anything in a cell that does not exist or does not fit.
    """
    seconds, victims = 0.0, 0
    for group in plan(manifest):
        first = settle_convolution(group.cells[0].config, device)
        (attack,) = build_study(dataclasses.replace(first, victims=1)).attacks
        each = predict_attack(first, attack, layout, device).seconds
        for cell in group.cells:
            spent = cell.config.steps * cell.config.restarts
            spent /= first.steps * first.restarts
            seconds += cell.config.victims * each * spent
            victims += cell.config.victims
    devices = jax.local_device_count() if layout.spread else 1
    return seconds / victims, seconds / devices


def _refuse_learning(config: LeakConfig, attack: ArmAttack) -> None:
    """Refuses to estimate an attack whose time is that of a training before it."""
    if attack.learn is not None:
        raise ValueError(
            f"attack {config.attack!r} spends its time on learning, once for each arm, "
            "and what that takes is not estimated: time a study of few steps"
        )


def _probe(group: Group, layout: Layout) -> _Probed:
    config = group.cells[0].config
    steps = min(STEPS, config.steps)
    devices = jax.local_device_count() if layout.spread else 1
    # One block of real victims, as many as there are.
    count = min(config.victims, layout.chunk * devices)
    study = build_study(dataclasses.replace(config, steps=steps, victims=count))
    (attack,) = study.attacks
    _refuse_learning(config, attack)
    one, draws, inputs = attack.attack_one, attack.client.draws, attack.inputs
    with jax.default_matmul_precision(config.precision):
        memory, spent = block_memory(one, layout, inputs, draws=draws)
        run = map_victims(one, layout, draws=draws, full=True)
        attacked, first = run(*inputs)
        _, again = run(*inputs)
    # A block is full, however few there are.
    each = again.run_s / (layout.chunk * devices)
    counted = attacked.reconstruction.numbers.get("evaluations")
    searches = counted is None or bool(np.any(counted))
    return _Probed(
        0.0 if searches else each,
        each / (steps * config.restarts) if searches else 0.0,
        spent.compile_s + first.compile_s,
        1 + len(draws),
        memory * devices,
    )
