"""What the model of an arm can do: measured while it trains, and at its end."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from kljax.core import files
from kljax.core.drawing import draw_jointly
from kljax.core.types import Gates, Private
from kljax.defences import unit_gates
from kljax.federated import evaluation
from kljax.federated.clients import ClientState
from kljax.federated.evaluation import Examples
from kljax.federated.server import ServerState
from kljax.models import site_widths
from kljax.parallel.agreement import agreed, from_first
from kljax.studies import run_folder
from kljax.studies.builder.run_setup import (
    ArmRounds,
    RunSetup,
    mean_gates,
    random_keys,
)

WATCHED = 3  # clients whose accuracy is measured while training


class Measured(NamedTuple):
    """What an arm's model can do, with the own gates of each client watched [n]."""

    accuracy: list[float]  # on test examples, see `TargetSpec.measure`
    attack_success: list[float] | None  # on triggered ones; None without attackers


class Measuring(NamedTuple):
    """What an arm is measured on.

    Attributes:
      built: the arm, whose network rejects what it is not confident of, if it is to.
      unit: gates of every site, which change nothing.
      test: test examples.
      triggered: those of other classes, with the attackers' trigger and label; None
        without attackers.
    """

    setup: RunSetup
    built: ArmRounds
    unit: Gates
    test: Examples
    triggered: Examples | None


def measuring_of(setup: RunSetup, name: str, built: ArmRounds) -> Measuring:
    """Makes what an arm is measured on."""
    test = Examples(*setup.test.fetch(np.arange(len(setup.test))))
    triggered, attack = None, setup.attack
    if attack is not None:
        triggered = evaluation.triggered_examples(*test, attack.trigger, attack.target)
    model = evaluation.rejecting(built.model, setup.config.reject_below)
    built = built._replace(model=model)
    return Measuring(setup, built, _unit_gates(setup, name), test, triggered)


def _unit_gates(setup: RunSetup, name: str) -> Gates:
    """Makes the gates that change nothing, of all sites that the arm's network has."""
    sites = setup.task.sites
    model = setup.task.models[setup.arms[name].norm]
    try:
        site_widths(model, sites.paths, setup.task.dataset.input_spec)
    except ValueError:
        return {}  # LeNet without a lock has no norm to gate
    return unit_gates(sites.paths, sites.widths)(None, None)


def watched_clients(setup: RunSetup, clients: ClientState) -> list[int]:
    """Chooses honest clients at equal distances; all are alike without a state."""
    leaves = jax.tree.leaves(clients.private)
    if not leaves:
        return [0]
    honest = _honest_clients(setup, len(leaves[0]))
    count = min(len(honest), WATCHED)
    return [honest[n * len(honest) // count] for n in range(count)]


def _honest_clients(setup: RunSetup, count: int) -> list[int]:
    """Lists who has no role; everyone, if all have one."""
    return [n for n in range(count) if n not in setup.roles] or list(range(count))


def _honest_privates(setup: RunSetup, clients: ClientState) -> Private:
    """Gives the private parts of the clients that are to be evaluated.

    With attackers, those are honest ones at equal distances, so that a client's other
    is honest, too.
    """
    leaves = jax.tree.leaves(clients.private)
    if not (leaves and setup.roles):
        return clients.private
    honest = _honest_clients(setup, len(leaves[0]))
    chosen = [honest[n] for n in evaluation.chosen_clients(len(honest))]
    return jax.tree.map(lambda x: x[np.array(chosen)], clients.private)


def measure(on: Measuring, server: ServerState, clients: ClientState) -> Measured:
    """Measures a model with the own lock of each client watched."""
    model, accuracies, successes = on.built.model, [], []
    targets = on.setup.task.dataset.target_spec
    for n in watched_clients(on.setup, clients):
        private = jax.tree.map(lambda x, n=n: x[n], clients.private)
        gates = {**on.unit, **on.built.defence.gates(server.public.defence, private)}
        given = model, server.public.model, server.stats, gates
        accuracies.append(evaluation.accuracy(*given, *on.test, targets=targets))
        if on.triggered is not None:
            successes.append(evaluation.accuracy(*given, *on.triggered))
    return Measured(accuracies, successes or None)


def evaluate_arm(
    on: Measuring, server: ServerState, clients: ClientState, place: Path | None
) -> dict[str, dict[str, Any]]:
    """Runs all tests on a trained model, or reads what they said before.

    Locks are those of honest clients, as while training.

    Args:
      place: folder of the arm; None writes and reads nothing.
    """
    setup, built, unit, test, _ = on
    with agreed():
        found = None if place is None else run_folder.read_accuracy(place)
    found = from_first(found)
    if found is not None:
        return found
    keys, public = random_keys(setup.config), setup.public
    size = 0 if public is None else len(public)
    initial = jax.device_get(jax.jit(draw_jointly(built.rounds.init_lock))(keys.init))
    accuracy = evaluation.evaluate(
        built.model,
        built.defence,
        server.public,
        server.stats,
        _honest_privates(setup, clients),
        unit_gates=unit,
        test=test,
        rng=keys.evaluation,
        public_examples=(
            None
            if public is None
            else evaluation.Examples(*public.fetch(np.arange(size)))
        ),
        initial_lock_weights=initial if jax.tree.leaves(initial) else None,
        mean_gates=mean_gates(setup) if unit else None,
        loss=setup.task.loss,
        targets=setup.task.dataset.target_spec,
        tests=[n for n, test in evaluation.TESTS.items() if test.examples <= size],
    )
    with agreed():
        if place is not None:
            files.write_json(place / "accuracy.json", accuracy)
    return accuracy
