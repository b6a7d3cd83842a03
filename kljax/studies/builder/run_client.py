"""A client of a training, at a round whose states were kept.

A run of ``kljax train`` keeps the states before the rounds it is told to: the network,
what the server held, and what the client under attack held.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kljax import data, threat
from kljax.attacks import Protocol
from kljax.core.denoiser import Denoiser
from kljax.core.drawing import draw_jointly
from kljax.core.generator import Generator
from kljax.core.types import LockWeights, Model, Params, Public, PyTree, Rng, Stats
from kljax.defences.arms import Arm
from kljax.federated import checkpoints, clients
from kljax.federated.algorithms import proximal
from kljax.federated.clients import ClientState, local_training
from kljax.federated.server import ServerState
from kljax.metrics.kinds import find_kind
from kljax.studies.builder import run_setup
from kljax.studies.builder.average import average_uploads
from kljax.studies.builder.drawn_client import Client
from kljax.studies.builder.from_run import (
    attacked_clients,
    own_examples,
    prepare_run,
    read_run,
    trained_name,
)
from kljax.studies.builder.observing import upload_each
from kljax.studies.builder.run_setup import RunSetup
from kljax.studies.builder.victims import Victims, choose_victims
from kljax.studies.config import LeakConfig, TrainConfig


class CapturedArm(NamedTuple):
    """One arm of a run at one round, as its server and its client see it.

    Of an average, `client` has the states of all its clients, with a leading axis [K].
    """

    public: Public  # what the server sends
    stats: Stats
    client: ClientState  # of the client under attack
    initial_lock_weights: LockWeights  # of round 0: the server drew them
    number: int  # of the round


class Captured(NamedTuple):
    """A run at one round, and the client, or clients, under attack.

    Attributes:
      config: of the study, settled.
      setup: what all arms share.
      own: [n] indices of each client's examples in the run's dataset.
      protocol: how the client trains in this round; None where its upload is one
        gradient.
    """

    config: LeakConfig
    setup: RunSetup
    own: list[np.ndarray]
    protocol: Protocol | None


def capture(config: LeakConfig) -> Captured:
    """Prepares the run and the client of a settled study.

    Raises:
      ValueError: for a client that the run does not have, or one with too few
        examples.
    """
    run = read_run(config)
    setup = prepare_run(config, run)
    own = own_examples(config, setup)
    needed = config.victims * config.examples
    for client, indices in zip(attacked_clients(config), own, strict=True):
        if needed > len(indices):
            raise ValueError(
                f"{config.victims} victims of {config.examples} examples each are "
                f"{needed}, and client {client} has {len(indices)}: take fewer "
                "victims, or smaller ones"
            )
    return Captured(config, setup, own, _protocol(config, run))


def choose_own(captured: Captured, *trained: Generator | Denoiser | None) -> Victims:
    """Chooses victims among the examples of the client, see `choose_victims`.

    Those of an average are of its clients, one after another.
    """
    dataset = captured.setup.task.dataset
    config = dataclasses.replace(captured.config, average_clients=None)

    def choose(own: np.ndarray) -> Victims:
        victims, _ = choose_victims(config, data.subset(dataset, own), *trained)
        return victims._replace(indices=own[victims.indices])

    chosen = [choose(own) for own in captured.own]
    first = chosen[0]

    def joined(name: str) -> PyTree:
        parts = [getattr(victims, name) for victims in chosen]
        return jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1), *parts)

    indices = joined("indices")
    return first._replace(
        indices=indices,
        inputs=joined("inputs"),
        labels=joined("labels"),
        groups=dataset.clusters_of(indices),
    )


def observed_rounds(captured: Captured, name: str) -> tuple[int, ...]:
    """Finds the rounds [K] before which the client of an arm is observed.

    Raises:
      ValueError: if the first was not kept, or too few after it; those that were are
        listed; and for updates between which the learning rate drops, of which an
        attacker replays one.
    """
    config = captured.config
    folder, count = Path(config.from_run) / name, config.observations
    rounds_kept = checkpoints.saved(folder)
    if config.round not in rounds_kept:
        raise ValueError(
            f"the state before round {config.round} of arm {name!r} in run "
            f"{config.from_run!r} was not kept; kept are "
            f"{', '.join(map(str, rounds_kept)) or 'none'} (keep_rounds of kljax train)"
        )
    later = [number for number in sorted(rounds_kept) if number >= config.round]
    if len(later) < count:
        raise ValueError(
            f"observations={count} of arm {name!r} in run {config.from_run!r}: from "
            f"round {config.round} on, the states before rounds "
            f"{', '.join(map(str, later))} were kept (keep_rounds of kljax train)"
        )
    drops = captured.setup.config.drops
    between = [number for number in drops if later[0] < number <= later[count - 1]]
    if between and config.upload == "update":
        raise ValueError(
            f"observations={count} of updates: the learning rate of run "
            f"{config.from_run!r} drops before round {between[0]}, and an attacker "
            "replays all of them with one: take fewer, or upload='gradient'"
        )
    return tuple(later[:count])


def capture_arm(
    captured: Captured, name: str, number: int | None = None
) -> CapturedArm:
    """Reads the states of an arm, named as in the run.

    Args:
      captured: the run.
      name: of the arm.
      number: of the round, one that was kept; None for the first that is observed.

    Raises:
      ValueError: if the round was not kept; those that were are listed.
    """
    config, setup = captured.config, captured.setup
    folder = Path(config.from_run) / name
    number = observed_rounds(captured, name)[0] if number is None else number
    arm_rounds = run_setup.arm_rounds(setup, name)
    training = local_training(
        arm_rounds.model,
        setup.task.loss,
        arm_rounds.defence,
        run_setup.local_optimiser(setup.config),
    )
    rng = run_setup.random_keys(setup.config).init

    def first(rng: Rng) -> tuple[ServerState, ClientState]:
        server = arm_rounds.rounds.init(rng)
        private = arm_rounds.defence.init(rng, server.public.model)[1]
        return server, training.init(server.public, private)

    server, states = jax.eval_shape(first, rng)
    count = setup.config.clients
    states = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype), states
    )
    server, states = checkpoints.restore(folder, number, server, states)
    attacked = np.array(attacked_clients(config))
    state = jax.tree.map(lambda x: x[attacked], states)
    if config.client_optimiser == "fresh":
        # Every client's is as fresh as the first one's.
        one = jax.tree.map(lambda x: x[0], state.private)
        fresh = jax.tree.map(
            lambda x: np.repeat(np.asarray(x)[None], len(attacked), 0),
            training.init(server.public, one).optimiser,
        )
        state = state._replace(optimiser=fresh)
    if config.average_clients is None:
        state = jax.tree.map(lambda x: x[0], state)
    initial = jax.jit(draw_jointly(arm_rounds.rounds.init_lock))(rng)
    initial = jax.device_get(initial)
    return CapturedArm(server.public, server.stats, state, initial, number)


def read_states(captured: Captured) -> Callable[[Arm], tuple[CapturedArm, ...]]:
    """Makes what reads the states [K] of an arm; once for arms of other strategies."""

    @functools.cache
    def read(name: str) -> tuple[CapturedArm, ...]:
        rounds = observed_rounds(captured, name)
        return tuple(capture_arm(captured, name, number) for number in rounds)

    return lambda arm: read(trained_name(arm.name))


def make_captured_client(
    captured: Captured, states: tuple[CapturedArm, ...], model: Model, *, train: bool
) -> Client:
    """Makes the client of an arm that was trained.

    Args:
      captured: the run, and which of its clients.
      states: [K] of the arm, one for each observation.
      model: the run's network, or what a malicious server made of it.
      train: mode of the norms in the one step of a gradient.
    """
    setup, protocol = captured.setup, captured.protocol
    loss, encode = setup.task.loss, setup.task.dataset.target_spec.encode
    config = captured.config
    options = run_setup.local_options(setup)

    def upload(rng, defence, network, held, images, labels, before=()) -> threat.Update:
        del before  # a client of a run has sent what it has sent
        (params, stats), (public, own_state, initial, number) = network, held
        received = Public(params, public)
        if protocol is None:
            step = clients.one_step(model, loss, defence, train=train, **options)
            private, steps = own_state.private, own_state.release.steps
            update = step(rng, received, stats, private, images, encode(labels), steps)
        else:
            training = clients.local_update(
                model,
                loss,
                defence,
                run_setup.local_optimiser(setup.config),
                steps=protocol.steps,
                batch=protocol.batch,
                **options,
            )
            update = training.run(
                rng, number, received, stats, own_state, images, labels
            )
        return update._replace(initial_lock_weights=initial)

    if config.average_clients is not None:
        upload = average_uploads(upload, config.average_clients)

    def parts(state: CapturedArm) -> tuple[PyTree, PyTree]:
        params = _with_inserted(model, state.public.model)
        held = state.public.defence, state.client, state.initial_lock_weights
        return (params, state.stats), (*held, np.asarray(state.number, np.int32))

    if len(states) == 1:
        return Client(upload, same=parts(states[0]))
    same = jax.tree.map(lambda *leaves: np.stack(leaves), *map(parts, states))
    return Client(upload, same=same, uploads=upload_each(upload, len(states)))


def _with_inserted(model: Model, params: Params) -> Params:
    """Adds to trained parameters those that a malicious server's module has."""
    shapes, _ = jax.eval_shape(model.init, jax.random.key(0))
    if shapes.keys() == params.keys():
        return params

    def draw_inserted() -> Params:
        drawn, _ = model.init(jax.random.key(0))
        return {name: drawn[name] for name in drawn.keys() - params.keys()}

    return {**params, **jax.device_get(jax.jit(draw_inserted)())}


def public_images(captured: Captured) -> np.ndarray:
    """Reads the public images of a run, for a malicious server to measure.

    Raises:
      ValueError: if the run has none, and for uploads of several steps.
    """
    config = captured.config
    if config.upload != "gradient":
        raise ValueError(
            f"attack {config.attack!r} modifies the network, and what the client of a "
            "run remembers of its training does not fit: attack upload='gradient'"
        )
    public = require_public(captured)
    return public.fetch(np.arange(len(public)))[0]


def require_public(captured: Captured) -> data.Dataset:
    """Gives the public examples of a run.

    Raises:
      ValueError: if the run has none.
    """
    config, public = captured.config, captured.setup.public
    if public is None:
        noun = find_kind(captured.setup.task.dataset.input_spec).noun
        raise ValueError(
            f"attack {config.attack!r} needs public {noun}s, and run "
            f"{config.from_run!r} has none (public_examples of kljax train)"
        )
    return public


def _optimiser(config: LeakConfig, run: TrainConfig) -> optax.GradientTransformation:
    """Makes the optimiser of the clients in the round under attack."""
    optimiser = run_setup.local_optimiser(run)
    if isinstance(optimiser, optax.GradientTransformation):
        return optimiser
    return optimiser(jnp.asarray(config.round, jnp.int32))


def _protocol(config: LeakConfig, run: TrainConfig) -> Protocol | None:
    if config.upload == "gradient":
        return None
    dropped = sum(config.round >= number for number in run.drops)
    return Protocol(
        _optimiser(config, run),
        steps=config.local_steps,
        batch=config.batch,
        learning_rate=run.learning_rate * run.drop_factor**dropped,
        penalty=proximal(run.proximal) if run.proximal else None,
    )
