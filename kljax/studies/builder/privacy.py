"""Differential privacy of a study's arms: what is refused, what is accounted for."""

from collections.abc import Callable

import jax
import numpy as np

from kljax import data
from kljax.core.types import Model
from kljax.defences import Mechanism
from kljax.defences.accounting import epsilon, require_accountant
from kljax.defences.arms import Arm
from kljax.studies.builder.run_setup import RunSetup, cohort_of, local_steps
from kljax.studies.config import LeakConfig
from kljax.threat import Knowledge


def check_attacked(arm: Arm, model: Model, knowledge: Knowledge) -> None:
    """Refuses a private arm whose guarantee does not hold for an attacked upload.

    Args:
      arm: any.
      model: its network.
      knowledge: of the attacker: the mode of the victim's norms, and what is shared.

    Raises:
      ValueError: with the arm, and what to do.
      ImportError: if what accounts for it is not installed.
    """
    mechanism = arm.defence.mechanism
    if mechanism is None:
        return
    if _keeps_statistics(model) and (
        knowledge.stats == "visible"
        or (mechanism.unit == "example" and knowledge.victim_norm == "train")
    ):
        raise ValueError(
            f"arm {arm.name!r}: {STATISTICS}: attack a network without such layers, "
            "or, in one step, with them in eval mode and statistics hidden "
            "(threat victim_norm=eval attacker_norm=eval stats=hidden)"
        )
    if knowledge.lock_grads == "shared":
        raise ValueError(
            f"arm {arm.name!r}: gradients of what it hides are shared as they are, "
            "neither clipped nor noised, and the guarantee of differential privacy "
            "would be lost: take lock_grads=hidden"
        )
    if knowledge.upload != "gradient":
        _check_trained(arm, mechanism, model)
    require_accountant()


def check_trained(setup: RunSetup, name: str) -> None:
    """Refuses a private arm whose guarantee does not hold in a training.

    Raises:
      ValueError: with the arm, and what to do.
      ImportError: if what accounts for it is not installed.
    """
    arm, config = setup.arms[name], setup.config
    mechanism, model = arm.defence.mechanism, setup.task.models[arm.norm]
    if mechanism is None:
        return
    if _keeps_statistics(model):
        raise ValueError(
            f"arm {name!r}: {STATISTICS}: train a network without such layers, such as "
            "lenet or dense, or take the arm without a lock's norm layers"
        )
    _check_trained(arm, mechanism, model)
    told = [need for need in setup.aggregator.needs if need not in NOT_OF_CLIENTS]
    if told:
        raise ValueError(
            f"arm {name!r}: aggregator {config.aggregator!r} needs "
            f"{' and '.join(told)} of private examples, to which no noise is added, "
            "and weighs clients by it: no epsilon holds. Take an aggregator of "
            "uploads alone, such as 'mean'"
        )
    if mechanism.unit == "example" and config.hardening != "none":
        raise ValueError(
            f"arm {name!r}: under hardening={config.hardening!r} an example changes "
            "what others are trained on, and no epsilon of an example holds: leave "
            "hardening out, or take dp-fedavg@update, which protects a client"
        )
    smallest = min(map(len, setup.partition))
    if mechanism.unit == "example" and smallest < config.batch:
        raise ValueError(
            f"arm {name!r}: a client has {smallest} examples, fewer than batch="
            f"{config.batch}: a batch has one of them twice, which then moves the "
            "gradient by more than its guarantee of differential privacy counts: lower "
            "batch"
        )
    require_accountant()


# What a rule of aggregation may need beside uploads, and is not of private examples.
NOT_OF_CLIENTS = ("rng", "clients", "root")
STATISTICS = (
    "norm layers in train mode make statistics of private examples, by which those of "
    "a batch change each other, and which a client uploads neither clipped nor noised; "
    "no epsilon holds"
)


def _keeps_statistics(model: Model) -> bool:
    return bool(jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0))[1]))


def _check_trained(arm: Arm, mechanism: Mechanism, model: Model) -> None:
    """Refuses weights that are trained without noise, and shape what is sent later."""
    params = jax.eval_shape(model.init, jax.random.key(0))[0]
    _, private = jax.eval_shape(arm.defence.init, jax.random.key(0), params)
    if mechanism.unit == "example" and jax.tree.leaves(private.trainable):
        raise ValueError(
            f"arm {arm.name!r}: what it hides is trained on gradients that are neither "
            "clipped nor noised, and changes what is sent in later steps: no epsilon "
            "of an example holds. Take dp-fedavg@update, which protects a client, or "
            "leave the lock out"
        )


def epsilon_of_upload(config: LeakConfig, arm: Arm) -> float | None:
    """Computes the epsilon of what is attacked; None without a guarantee.

    Of an update of T steps of B of the n examples, an example is in as many gradients
    as epochs are begun. Gradients that were sent before, and that the server has, are
    of other examples, and of the same client. Observations are of the same examples.
    """
    mechanism, releases = arm.defence.mechanism, 1
    if mechanism is None:
        return None
    if config.upload == "update" and mechanism.releases == "gradients":
        releases = config.local_steps
        if mechanism.unit == "example":
            releases = -(-config.local_steps * config.batch // config.examples)
    elif mechanism.unit == "client":
        releases += config.earlier
    return epsilon(mechanism, releases * config.observations, config.delta)


def epsilon_by_round(setup: RunSetup, name: str) -> Callable[[int], float | None]:
    """Makes what says the epsilon of an arm after so many rounds of a training.

    It is that of the client which has released most: of rounds in whose cohort it was,
    and in each one gradient of an example per epoch begun, or one of the client per
    local step, or the update.

    Returns:
      ``rounds -> epsilon``; None without a guarantee. It is called with numbers that
      do not fall.
    """
    config, mechanism = setup.config, setup.arms[name].defence.mechanism
    if mechanism is None:
        return lambda rounds: None
    in_a_round = np.array([_releases(setup, mechanism, own) for own in setup.partition])
    done, spent = 0, np.zeros(config.clients, int)

    def after(rounds: int) -> float | None:
        nonlocal done
        for number in range(done, rounds):
            cohort = cohort_of(config, number)
            spent[cohort] += in_a_round[cohort]
        done = max(done, rounds)
        return epsilon(mechanism, int(spent.max()), config.delta)

    return after


def _releases(setup: RunSetup, mechanism: Mechanism, own: np.ndarray) -> int:
    """Counts in how many releases of a round a unit of a client may be."""
    if mechanism.releases == "update":
        return 1
    steps = local_steps(setup.config, len(own))
    if mechanism.unit == "client":
        return steps
    return -(-steps // data.local_steps(len(own), setup.config.batch, 1))
