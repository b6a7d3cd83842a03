"""Preparation: from a configuration of a training to all that it names.

Everything here is a function of the configuration alone, so that whoever goes on with a
run, or attacks a state of it, gets the network, defence, clients and batches that made
it. Everything random follows from (seed, round, client).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kljax import data
from kljax.core.drawing import draw_jointly
from kljax.core.randomness import derive_rng
from kljax.core.registry import call_named, check_callable, resolve
from kljax.core.types import Gates, Model, Rng
from kljax.data.augmentation import AUGMENTATIONS
from kljax.data.triggers import make_trigger
from kljax.defences import Defence, arms, keylock
from kljax.defences.arms import Arm
from kljax.federated.aggregation import Aggregator, mean
from kljax.federated.algorithms import fedavg, new_private_key, proximal
from kljax.federated.clients import Batches, ClientState, LocalOptimiser
from kljax.federated.encryption import (
    LEAST,
    Encryption,
    check_encryption,
    make_encryption,
)
from kljax.federated.hardening import make_hardening
from kljax.federated.optimisers import CLIENT_OPTIMISERS
from kljax.federated.role_texts import parse_roles
from kljax.federated.roles import Attack, Role
from kljax.federated.rounds import Fetch, Rounds
from kljax.federated.server import ServerState
from kljax.models import FEDKL_STATISTICS, normalised
from kljax.studies.builder.server_side import (
    ServerFacts,
    evidence_of,
    find_aggregator,
    hold_out,
    server_optimiser,
)
from kljax.studies.builder.task import LearningTask, build_task, check_norm, load_split
from kljax.studies.config import TrainConfig, default


class RunSetup(NamedTuple):
    """What all arms of a run share."""

    config: TrainConfig
    task: LearningTask  # of the examples of all clients
    test: data.Dataset
    public: data.Dataset | None  # nobody's: for outsiders who re-fit gates
    partition: data.Partition  # of each client: indices into the task's dataset
    held_out: data.Partition | None  # what it validates on and does not train on
    steps: int  # T: local steps of the largest client; others are padded
    arms: dict[str, Arm]
    aggregator: Aggregator
    encryption: Encryption | None
    attack: Attack | None  # what clients that are not honest aim at
    roles: dict[int, Role]  # of those clients


class ArmRounds(NamedTuple):
    """What one arm of a run is made of."""

    model: Model
    defence: Defence
    rounds: Rounds


class Keys(NamedTuple):
    """The random keys of a run, the same for every arm."""

    init: Rng  # of Rounds.init, init_lock and init_clients
    rounds: Rng  # of Rounds.run_round
    evaluation: Rng


def build_run_setup(config: TrainConfig) -> RunSetup:
    """Loads data and deals them out, makes networks and arms; a function of `config`.

    Raises:
      ValueError: for anything in `config` that does not exist or does not fit.
    """
    train, test, public = load_split(config)
    for option in ("normalise", "roles", "hardening"):  # a trigger needs roles
        if getattr(config, option) != default(TrainConfig, option):
            _check_images(config, option, train)
    if config.roles:
        train.target_spec.require_classes(f"roles={list(config.roles)}")
    for option in ("hardening", "reject_below"):
        value = getattr(config, option)
        if value != default(TrainConfig, option):
            train.target_spec.require_classes(f"{option}={value!r}")
    labels = _classes_to_deal(config, train)
    partition = data.partition(config.partition, labels, config.clients, config.seed)
    aggregator = find_aggregator(config)
    partition, held_out = hold_out(config, aggregator, partition)
    steps = max(local_steps(config, len(own)) for own in partition)
    task = build_task(config, train)
    statistics = resolve(
        "normalisation", config.normalise, {"none": None, **FEDKL_STATISTICS}
    )
    if statistics is not None and not isinstance(statistics, tuple):
        raise ValueError(
            f"normalisation {config.normalise!r} is no tuple (mean, std), but "
            f"{type(statistics).__name__}"
        )
    if statistics is not None:
        models = {n: normalised(m, *statistics) for n, m in task.models.items()}
        task = task._replace(models=models)
    defences: dict[str, Defence] = {}
    sites = task.sites._replace(batch=config.batch)
    parsed = {
        text: arms.parse_training_arm(text, sites, defences) for text in config.arms
    }
    for arm in parsed.values():
        check_norm(config, task.network, arm)
    encryption = _find_encryption(config, aggregator)
    attack = _find_attack(config, train, test)
    roles = {}
    if attack is not None:
        roles = parse_roles(config.roles, attack, config.clients, config.rounds)
    setup = RunSetup(
        config,
        task,
        test,
        public,
        partition,
        held_out,
        steps,
        parsed,
        aggregator,
        encryption,
        attack,
        roles,
    )
    for name in parsed:
        arm_rounds(setup, name)  # a typo in an optimiser costs nothing
    return setup


def _classes_to_deal(config: TrainConfig, train: data.Dataset) -> np.ndarray:
    """Gives the class of each example, by which partitions deal.

    Raises:
      ValueError: for a partition by classes where targets have none.
    """
    labels, class_of = train.labels[np.arange(len(train))], train.target_spec.class_of
    if class_of is not None:
        return class_of(labels)
    if config.partition != "iid":
        raise ValueError(
            f"partition {config.partition!r} deals examples out by class, and the "
            f"targets of dataset {config.data!r} are {train.target_spec.kind}: take "
            "'iid'"
        )
    return np.zeros(len(labels), np.int32)


def _find_encryption(config: TrainConfig, rule: Aggregator) -> Encryption | None:
    encryption, clients = make_encryption(config.encryption), cohort_size(config)
    if encryption is None:
        return None
    check_encryption(encryption, rule)
    if clients < LEAST:
        raise ValueError(
            f"encryption {config.encryption!r} needs {LEAST} clients in a round, and "
            f"there is {clients}: the mean of one is its upload"
        )
    return encryption


def _check_images(config: TrainConfig, option: str, train: data.Dataset) -> None:
    """Refuses an option that says something about images alone."""
    if train.input_spec.kind != "image":
        raise ValueError(
            f"{option}={getattr(config, option)!r} is about images, and dataset "
            f"{config.data!r} holds {train.input_spec.kind}: leave it out"
        )


def _find_attack(
    config: TrainConfig, train: data.Dataset, test: data.Dataset
) -> Attack | None:
    if not config.roles:
        return None
    classes = train.target_spec.require_classes("the target class of --roles")
    if config.target_class >= classes:
        raise ValueError(
            f"target_class={config.target_class} does not exist: dataset "
            f"{config.data!r} has classes 0 to {classes - 1}"
        )
    if np.all(test.labels[np.arange(len(test))] == config.target_class):
        raise ValueError(
            f"all {len(test)} test images are of target_class={config.target_class}: "
            "attack success is measured on others, so take more, or another class"
        )
    return Attack(
        make_trigger(config.trigger, train.shape),
        config.target_class,
        config.poisoned,
        train.num_classes,
        cohort_size(config),
        config.server_learning_rate,
    )


def arm_rounds(setup: RunSetup, name: str) -> ArmRounds:
    """Makes network, defence and rounds of an arm.

    Raises:
      ValueError: for an unknown optimiser or augmentation.
    """
    arm = setup.arms[name]
    model = setup.task.models[arm.norm]
    return ArmRounds(model, arm.defence, _rounds(setup, model, arm.defence))


def _rounds(setup: RunSetup, model: Model, defence: Defence) -> Rounds:
    config, rule = setup.config, setup.aggregator
    facts = ServerFacts(setup.public, setup.held_out)
    optimiser, local = local_optimiser(config), local_options(setup)
    return fedavg(
        model,
        setup.task.loss,
        optimiser,
        defence=defence,
        local=local,
        evidence=evidence_of(
            config, rule, setup.task, facts, model, defence, optimiser, local
        ),
        server_optimiser=server_optimiser(config),
        aggregator=rule,
        encryption=setup.encryption,
        roles=setup.roles,
        hardening=make_hardening(config.hardening, config.rounds),
        weighting=config.weighting,
        on_nonfinite=config.on_nonfinite,
        layout=config.layout,
        input_spec=setup.task.dataset.input_spec,
        target_spec=setup.task.dataset.target_spec,
    )


def local_options(setup: RunSetup) -> dict[str, Any]:
    """Makes the options of `kljax.local_training` that a run settles.

    All that makes a client's round what it is, beside network, loss, defence and
    optimiser. Whoever trains, and whoever attacks a client of the run, takes them from
    here: one that either could not take would be a TypeError.

    Raises:
      ValueError: for an unknown augmentation.
    """
    config, lock = setup.config, setup.task.sites.lock
    augment = resolve("augmentation", config.augment, AUGMENTATIONS)
    if augment is not None:
        check_callable("augmentation", config.augment, augment)
    return {
        "renew": new_private_key(lock) if config.fresh_private_keys else None,
        "augment": augment,
        "penalty": proximal(config.proximal) if config.proximal else None,
        "reset_optimiser": config.reset_optimiser,
        "targets": setup.task.dataset.target_spec,
    }


def random_keys(config: TrainConfig) -> Keys:
    """Makes the random keys of a run."""
    rng = jax.random.key(config.seed)
    return Keys(*(derive_rng(rng, Keys._fields, field) for field in Keys._fields))


def start(setup: RunSetup, rounds: Rounds) -> tuple[ServerState, ClientState]:
    """Draws the states before the first round."""
    rng = random_keys(setup.config).init
    server = jax.device_get(jax.jit(draw_jointly(rounds.init))(rng))
    return server, rounds.init_clients(rng, server, setup.config.clients)


def mean_gates(setup: RunSetup) -> Gates:
    """Makes what an outsider who expects a lock may start from, in any arm.

    Those are the gates of the constant private key 0.5, the mean of all keys, through
    the lock weights that the server gives to everybody before the first round.
    """
    config, lock = setup.config, setup.task.sites.lock
    defence = keylock(lock)
    # Nothing is aggregated, and a rule may not go with a lock.
    setup = setup._replace(aggregator=mean())
    rounds = _rounds(setup, setup.task.models[True], defence)
    weights = jax.jit(draw_jointly(rounds.init_lock))(random_keys(config).init)
    return lock.gates(weights, jnp.full(config.private_key_size, 0.5))


def local_optimiser(config: TrainConfig) -> LocalOptimiser:
    """Makes the optimiser of the clients, by round if its learning rate drops.

    Raises:
      ValueError: for an unknown name, or a user's function that gives none.
    """
    make = resolve("optimiser", config.optimiser, CLIENT_OPTIMISERS)
    own = config.optimiser not in CLIENT_OPTIMISERS

    def at(rate) -> optax.GradientTransformation:
        if own:
            return call_named("optimiser", config.optimiser, make, rate)
        return make(
            rate,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
        )

    if not isinstance(at(config.learning_rate), optax.GradientTransformation):
        raise ValueError(
            f"optimiser {config.optimiser!r} gave no optax.GradientTransformation"
        )
    if not config.drops:
        return at(config.learning_rate)

    def of_round(number) -> optax.GradientTransformation:
        dropped = jnp.sum(number >= jnp.array(config.drops))
        return at(config.learning_rate * config.drop_factor**dropped)

    return of_round


# --- what a round trains on ------------------------------------------------------


def local_steps(config: TrainConfig, count: int) -> int:
    """Counts the local steps of a client with `count` examples."""
    return data.local_steps(
        count, config.batch, config.local_epochs, steps=config.local_steps
    )


def cohort_size(config: TrainConfig) -> int:
    """Counts the clients of a round."""
    return config.cohort or config.clients


def cohort_of(config: TrainConfig, number: int) -> np.ndarray:
    """Draws the clients [n] of a round."""
    return data.cohort(config.seed, number, config.clients, cohort_size(config))


def batches_of(setup: RunSetup, number: int) -> Fetch:
    """Makes the function that reads the batches of clients in a round."""
    config = setup.config

    def fetch(ids: np.ndarray) -> tuple[Batches, np.ndarray]:
        drawn = [
            data.local_batches(
                setup.partition[client],
                batch=config.batch,
                epochs=config.local_epochs,
                steps=config.local_steps,
                seed=config.seed,
                round=number,
                client=int(client),
            )
            for client in ids
        ]
        indices, valid = data.stacked(drawn, setup.steps)
        inputs, labels = data.fetch_batches(setup.task.dataset, indices)
        counts = [len(setup.partition[client]) for client in ids]
        return Batches(inputs, labels, valid), np.array(counts, np.float32)

    return fetch
