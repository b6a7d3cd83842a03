"""Captured states: a client of a training, at a round whose states were kept.

A run of ``kljax train`` keeps the states before the rounds it is told to. Here such a
state becomes the task of a leakage study: the network, the defence and the loss of
the run, what the server held, and what the client under attack held.
"""

import dataclasses
import functools
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kljax import data
from kljax.attacks import Protocol
from kljax.core.drawing import draw_jointly
from kljax.core.registry import own_functions
from kljax.core.types import LockWeights, Model, Public, Rng, Stats
from kljax.defences.arms import KINDS
from kljax.federated import checkpoints
from kljax.federated.algorithms import proximal
from kljax.federated.clients import ClientState, local_training
from kljax.federated.server import ServerState
from kljax.studies import run_folder
from kljax.studies.builder import run_setup
from kljax.studies.builder.run_setup import Prepared
from kljax.studies.config import LeakConfig, TrainConfig, default
from kljax.studies.config.leak import weights_limit

# What a run has settled, by the same name in both configurations.
SETTLED = (
    "model",
    "data",
    "sites",
    "chained",
    "private_key_size",
    "init",
    "lock_init",
    "lock_activation",
    "loss",
    "image_size",
    "image_width",
    "channels",
    "tokens",
)
# What is done about a lock if nothing is said: an upper bound, the strongest attack
# that needs no secret, and a guess.
STRATEGIES = ("known", "regress_gates", "fixed_random")


class CapturedArm(NamedTuple):
    """One arm of a run at one round, as its server and one client see it."""

    model: Model
    public: Public  # what the server sends
    stats: Stats
    client: ClientState  # of the client under attack
    initial_lock_weights: LockWeights  # of round 0: the server drew them


class Captured(NamedTuple):
    """A run at one round, and one of its clients.

    Attributes:
      config: of the study, settled.
      prepared: what all arms share.
      own: [n] indices of the client's examples in ``prepared.train``.
      protocol: how the client trains in this round; None where its upload is one
        gradient.
    """

    config: LeakConfig
    prepared: Prepared
    own: np.ndarray
    protocol: Protocol | None


def settle(config: LeakConfig) -> LeakConfig:
    """Fills in what follows from the run; without one, how weights are drawn.

    Settling twice changes nothing, so that a study can be repeated from what its own
    folder says.

    Raises:
      FileNotFoundError: if the folder holds no run.
      ValueError: for an option that contradicts the run, an arm that it does not have,
        and sizes of an update that fit neither the client nor each other.
    """
    if config.from_run is None:
        if config.init is not None:
            return config
        return dataclasses.replace(config, init=weights_limit(config.model))
    if config.earlier:
        raise ValueError(
            f"earlier={config.earlier}: a client of a run has sent what it has sent, "
            "and the run has no record of it; leave it out"
        )
    run = _read(config)
    changes = {name: _settle_field(config, run, name) for name in SETTLED}
    if config.split not in (None, run.train_split):
        raise _contradiction(config, "split", run.train_split)
    changes |= {
        # The same data may lie elsewhere on this machine.
        "data_dir": config.data_dir or run.data_dir,
        "arms": _arms(config, run),
        "weights": "shared",
    }
    config = dataclasses.replace(config, **changes)
    if config.upload == "gradient":
        return config
    prepared = _prepared(config, run)
    return dataclasses.replace(
        config, **_sizes(config, run, len(_own(config, prepared)))
    )


def capture(config: LeakConfig) -> Captured:
    """Prepares the run and the client of a settled study.

    Raises:
      ValueError: for a client that the run does not have, or one with too few
        examples.
    """
    run = _read(config)
    prepared = _prepared(config, run)
    own = _own(config, prepared)
    needed = config.victims * config.examples
    if needed > len(own):
        raise ValueError(
            f"{config.victims} victims of {config.examples} examples each are "
            f"{needed}, and client {config.client} has {len(own)}: take fewer victims, "
            "or smaller ones"
        )
    return Captured(config, prepared, own, _protocol(config, run))


def capture_arm(captured: Captured, name: str) -> CapturedArm:
    """Reads the states of an arm, named as in the run.

    Raises:
      ValueError: if the round was not kept; those that were are listed.
    """
    config, prepared = captured.config, captured.prepared
    folder = Path(config.from_run) / name
    kept = checkpoints.saved(folder)
    if config.round not in kept:
        raise ValueError(
            f"the state before round {config.round} of arm {name!r} in run "
            f"{config.from_run!r} was not kept; kept are "
            f"{', '.join(map(str, kept)) or 'none'} (keep_rounds of kljax train)"
        )
    made = run_setup.arm_rounds(prepared, name)
    training = local_training(
        made.model,
        prepared.loss,
        made.defence,
        run_setup.local_optimiser(prepared.config),
    )
    rng = run_setup.random_keys(prepared.config).init

    def first(rng: Rng) -> tuple[ServerState, ClientState]:
        server = made.rounds.init(rng)
        private = made.defence.init(rng, server.public.model)[1]
        return server, training.init(server.public, private)

    server, clients = jax.eval_shape(first, rng)
    count = prepared.config.clients
    clients = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype), clients
    )
    server, clients = checkpoints.restore(folder, config.round, server, clients)
    mine = jax.tree.map(lambda x: x[config.client], clients)
    if config.client_optimiser == "fresh":
        fresh = training.init(server.public, mine.private)
        mine = mine._replace(optimiser=fresh.optimiser)
    initial = jax.jit(draw_jointly(made.rounds.init_lock))(rng)
    return CapturedArm(
        made.model, server.public, server.stats, mine, jax.device_get(initial)
    )


def _prepared(config: LeakConfig, run: TrainConfig) -> Prepared:
    """Prepares the run of a study, unless it is the one that was prepared before.

    A study asks more than once, and every cell of a sweep does. What is the same is
    told by the folder, by the files that data are read from, and by the users' own
    functions themselves: a name can stand for another function by now.
    """
    folder = Path(config.from_run).resolve()
    written = (folder / "config.json").stat()
    return _prepared_once(
        run,
        (str(folder), written.st_mtime_ns, written.st_size),
        data.stamp(run.data, run.data_dir) if ":" not in run.data else (),
        own_functions(dataclasses.astuple(run)),
    )


@functools.lru_cache(maxsize=1)
def _prepared_once(run: TrainConfig, *read_from) -> Prepared:
    del read_from
    return run_setup.prepare(run)


def _optimiser(config: LeakConfig, run: TrainConfig) -> optax.GradientTransformation:
    """Makes the optimiser of the clients in the round under attack."""
    found = run_setup.local_optimiser(run)
    if isinstance(found, optax.GradientTransformation):
        return found
    return found(jnp.asarray(config.round, jnp.int32))


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


def _read(config: LeakConfig) -> TrainConfig:
    return run_folder.read_config(Path(config.from_run))


def _own(config: LeakConfig, prepared: Prepared) -> np.ndarray:
    count = len(prepared.partition)
    if config.client >= count:
        raise ValueError(
            f"client={config.client} does not exist: run {config.from_run!r} has "
            f"clients 0 to {count - 1}"
        )
    if config.client in prepared.roles:
        raise ValueError(
            f"client={config.client} of run {config.from_run!r} is an attacker itself "
            f"({', '.join(prepared.config.roles)}): attack an honest client"
        )
    return prepared.partition[config.client]


def _settle_field(config: LeakConfig, run: TrainConfig, name: str):
    given, theirs = getattr(config, name), getattr(run, name)
    if given not in (default(LeakConfig, name), theirs):
        raise _contradiction(config, name, theirs)
    return theirs


def _contradiction(config: LeakConfig, name: str, theirs) -> ValueError:
    return ValueError(
        f"{name}={getattr(config, name)!r} contradicts run {config.from_run!r}, which "
        f"has {theirs!r}: leave it out"
    )


def describe(config: LeakConfig) -> str:
    """Says in a sentence who is attacked and when."""
    sent = "the gradient of one step"
    if config.upload == "update":
        sent = (
            f"an update of {config.local_steps} local steps, batch {config.batch}, "
            f"{config.client_optimiser} optimiser, in an order the attacker knows"
        )
    return (
        f"client {config.client} of run {config.from_run}, at the state before round "
        f"{config.round}, uploads {sent}; it trains as the run says, with "
        "augmentation and fresh private keys where the run has them"
    )


def trained_name(arm: str) -> str:
    """Gives an attacked arm's name in the run: the same without a secret strategy."""
    return arm.partition("/")[0]


def _arms(config: LeakConfig, run: TrainConfig) -> tuple[str, ...]:
    if config.arms == default(LeakConfig, "arms"):
        return tuple(name for arm in run.arms for name in _attacked(arm))
    for arm in config.arms:
        if trained_name(arm) not in run.arms:
            raise ValueError(
                f"arm {arm!r} was not trained in run {config.from_run!r}, which has "
                f"{', '.join(run.arms)}"
            )
    return config.arms


def _attacked(arm: str) -> tuple[str, ...]:
    first = arm.partition("+")[0].partition("=")[0]
    locked = first in KINDS and KINDS[first].locked
    return tuple(f"{arm}/{strategy}" for strategy in STRATEGIES) if locked else (arm,)


def _sizes(config: LeakConfig, run: TrainConfig, count: int) -> dict[str, int]:
    """Works out steps T, batch B and distinct examples n of each update."""
    batch = config.batch or run.batch
    if batch > count:
        raise ValueError(
            f"client {config.client} has {count} examples, less than batch={batch}: "
            "give a smaller batch"
        )
    steps = config.local_steps or data.local_steps(
        count, batch, run.local_epochs, steps=run.local_steps
    )
    if steps % (config.local_epochs or 1):
        raise ValueError(
            f"local_steps={steps} are not local_epochs={config.local_epochs} times a "
            "whole number of batches"
        )
    # A client that makes more steps than it has batches begins again.
    in_epoch = steps // config.local_epochs if config.local_epochs else steps
    examples = min(in_epoch, count // batch) * batch
    if config.examples not in (default(LeakConfig, "examples"), examples):
        raise ValueError(
            f"examples={config.examples}: an update of {steps} steps of {batch} is "
            f"made of {examples} here; leave it out"
        )
    return {"local_steps": steps, "batch": batch, "examples": examples}
