"""FedAvg: replays of an update over several epochs, exact and cheaper ones.

Reference of all: Dimitrov et al., "Data Leakage in Federated Averaging" (TMLR 2022);
code eth-sri/fedavg_leakage, utils/flax_losses.py, get_orig_grads. Letters: n examples,
B in a batch, T local steps, E epochs.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from kljax.attacks.attack import Candidate, Simulation
from kljax.attacks.setting import Setting
from kljax.attacks.simulation.steps import local_replay, replay
from kljax.core.types import Array, Public
from kljax.threat import View

# full: the client's own training, the same images in every epoch, in order.
# full_many: images of its own for each epoch, [E n, H, W, C] together, so that the
#   order of a shuffling client need not be known; that of the labels is believed to be
#   the same in every epoch.
# none: the gradient over all images at the start, in all T steps.
# none_epoch: the gradient over all images at the start of each epoch, in its steps.
VARIANTS = ("full", "full_many", "none", "none_epoch")


def epochs_of(setting: Setting) -> int:
    """Counts the epochs E of an update; 1 for a gradient.

    Raises:
      ValueError: if the steps are no whole number of epochs.
    """
    protocol, knows = setting.protocol, setting.threat.knowledge
    if protocol is None:
        return 1
    examples = knows.examples // knows.clients
    seen = protocol.steps * protocol.batch
    if seen % examples:
        raise ValueError(
            f"{protocol.steps} steps of {protocol.batch} are no whole number of epochs "
            f"of {examples} examples"
        )
    return seen // examples


def fedavg(setting: Setting, gates: Callable[..., Any], variant: str) -> Simulation:
    """Makes the simulation of a variant; of a gradient, all of them are one step.

    Args:
      setting: its protocol says how clients train.
      gates: ``(public, Candidate.secret) -> gates`` of the secret's strategy.
      variant: out of `VARIANTS`; under ``full_many`` the candidate has E n images and
        targets, where E is `epochs_of` the setting.

    Raises:
      ValueError: for an unknown variant, no whole number of epochs where epochs count,
        another variant than ``full`` of an average of clients, and what `replay`
        raises.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of {VARIANTS}, got {variant!r}")
    protocol, exact = setting.protocol, replay(setting, gates)
    if protocol is None or variant == "full":
        return exact
    if setting.threat.knowledge.upload == "average":
        raise ValueError(
            f"variant {variant!r} has one client's images in every epoch, and the "
            "threat model says upload='average': take 'full'"
        )
    epochs = 1 if variant == "none" else epochs_of(setting)
    if variant == "full_many":
        return exact
    return averaged_steps(
        setting,
        gates,
        optimiser=protocol.optimiser,
        steps=protocol.steps,
        every=protocol.steps // epochs,
        penalty=protocol.penalty,
        unit=protocol.learning_rate * protocol.steps,
    )


def averaged_steps(
    setting: Setting,
    gates: Callable[..., Any],
    *,
    optimiser: optax.GradientTransformation,
    steps: int,
    every: int,
    penalty: Callable[[Public, Public], Array] | None = None,
    unit: float = 1.0,
    rematerialise: bool = True,
) -> Simulation:
    """Replays T steps with T / `every` gradients, each over all images at once.

    A gradient is used for `every` steps of the client's optimiser. For plain gradient
    descent that is one step, `every` times as long.

    Args:
      setting, gates, optimiser, steps, penalty, unit, rematerialise: see
        `kljax.attacks.local_steps`.
      every: steps that share a gradient; it divides `steps`.

    Raises:
      ValueError: if steps or every is below 1, or every does not divide steps.
    """
    if min(steps, every) < 1 or steps % every:
        raise ValueError(
            f"steps={steps} and every={every} must be at least 1, and every must "
            "divide steps"
        )

    def simulation(view: View, candidate: Candidate):
        replayed = local_replay(setting, gates, view, candidate, penalty, unit)

        def phase(carry, index: Array):
            now, stats, memory = carry
            grads, stats = replayed.gradient(
                now, stats, index, replayed.inputs, candidate.targets
            )

            def step(carry, _):
                now, memory = carry
                moves, memory = optimiser.update(grads, memory, now)
                return (optax.apply_updates(now, moves), memory), None

            (now, memory), _ = jax.lax.scan(step, (now, memory), length=every)
            return (now, stats, memory), None

        if rematerialise:
            phase = jax.checkpoint(phase, prevent_cse=False)
        start = replayed.start
        (trained, _, _), _ = jax.lax.scan(
            phase,
            (start, view.stats, optimiser.init(start)),
            jnp.arange(steps // every),
        )
        return replayed.compare(trained)

    return simulation
