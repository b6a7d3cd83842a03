"""The server of a training: its rule, its optimiser, and what it finds out."""

from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from kljax import data
from kljax.core.types import Model
from kljax.defences import Defence
from kljax.federated.aggregation import Aggregator, Evidence, make_aggregator
from kljax.federated.clients import Batches, LocalOptimiser
from kljax.federated.evidence import HeldOut, cross_validation, root_training
from kljax.federated.optimisers import make_server_optimiser
from kljax.studies.builder.task import LearningTask
from kljax.studies.config import TrainConfig


def find_aggregator(config: TrainConfig) -> Aggregator:
    """Finds the rule of a training.

    Raises:
      ValueError: for an unknown name, numbers that it does not take, and a training
        with too few clients, or with more than it tells apart.
    """
    rule = make_aggregator(config.aggregator)
    clients = config.cohort or config.clients
    if clients < rule.least:
        raise ValueError(
            f"aggregator {config.aggregator!r} needs {rule.least} clients in a round, "
            f"and there are {clients}: take more clients, or another aggregator"
        )
    if rule.population is not None and config.clients > rule.population:
        raise ValueError(
            f"aggregator {config.aggregator!r} tells {rule.population} clients apart, "
            f"and there are {config.clients}: give it the number of all clients"
        )
    return rule


def server_optimiser(config: TrainConfig) -> optax.GradientTransformation:
    """Makes the optimiser of the server.

    Raises:
      ValueError: for an unknown name, or a user's function that gives none.
    """
    text = config.server_optimiser
    if config.server_momentum:  # of sgd alone
        text = f"{text}={config.server_momentum!r}"
    return make_server_optimiser(text, config.server_learning_rate)


class ServerFacts(NamedTuple):
    """What a server can find things out with.

    Attributes:
      public: examples that no client has, which are the root examples of the server.
      held_out: of each client, what it holds back: indices into the task's dataset;
        None where nobody asks for it.
    """

    public: data.Dataset | None
    held_out: data.Partition | None


VALIDATION = 0.1  # share of a client's examples that it holds back, as FedBoosting has


def hold_out(
    config: TrainConfig, rule: Aggregator, partition: data.Partition
) -> tuple[data.Partition, data.Partition | None]:
    """Parts what clients train on from what they hold back, if the rule asks for it.

    Raises:
      ValueError: for a client with a single example.
    """
    if not {"validation", "mixed_validation"} & {*rule.needs}:
        return partition, None
    return data.part_examples(partition, VALIDATION, config.seed)


def evidence_of(
    config: TrainConfig,
    rule: Aggregator,
    task: LearningTask,
    facts: ServerFacts,
    model: Model,
    defence: Defence,
    optimiser: LocalOptimiser,
    local: dict[str, Any],
) -> dict[str, Evidence]:
    """Makes what the server finds out in a round, of what the rule needs.

    Args:
      config: of the training.
      rule: its aggregator.
      task: of its clients.
      facts: what it finds out with.
      model, defence, optimiser: of an arm.
      local: options of `kljax.local_training`.

    Raises:
      ValueError: for a rule that needs root examples where there are none, and an arm
        whose defence it does not go with.
    """
    found = {}
    for name in {"validation", "mixed_validation"} & {*rule.needs}:
        found[name] = cross_validation(
            model,
            task.loss,
            defence,
            lambda ids: read_held_out(task.dataset, facts.held_out, ids),
            task.dataset.target_spec,
            mixed=name == "mixed_validation",
        )
    if "root" in rule.needs:
        if facts.public is None:
            raise ValueError(
                f"aggregator {config.aggregator!r} needs examples of the server's own, "
                "and public_examples is 0: take some"
            )
        found["root"] = root_training(
            model,
            task.loss,
            defence,
            optimiser,
            lambda number: root_batches(config, facts.public, number),
            **local | {"renew": None},
        )
    return found


def read_held_out(
    dataset: data.Dataset, held_out: data.Partition, ids: np.ndarray
) -> HeldOut:
    """Reads what some clients hold back, padded to the most that any client has."""
    most = max(map(len, held_out))
    place = np.arange(most)
    own = [held_out[client] for client in ids]
    indices = np.stack([rows[np.minimum(place, len(rows) - 1)] for rows in own])
    valid = np.stack([place < len(rows) for rows in own])
    return HeldOut(*data.fetch_batches(dataset, indices), valid)


def root_batches(config: TrainConfig, public: data.Dataset, number: int) -> Batches:
    """Reads the batches of the server's own training in a round.

    They are drawn from all public examples as a client's are, under the number after
    that of the last client.
    """
    drawn = data.local_batches(
        np.arange(len(public)),
        batch=config.batch,
        epochs=config.local_epochs,
        steps=config.local_steps,
        seed=config.seed,
        round=number,
        client=config.clients,
    )
    indices, valid = data.stacked([drawn], len(drawn))
    inputs, labels = data.fetch_batches(public, indices)
    return jax.tree.map(lambda x: x[0], Batches(inputs, labels, valid))
