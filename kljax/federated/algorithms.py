"""Federated algorithms by name: compositions of a defence, training and rounds."""

import jax
import optax

from kljax.core.types import Array, Loss, Model, Private, Public, Rng
from kljax.defences import Defence, keylock, none
from kljax.defences.lock import KeyLock
from kljax.federated.clients import LocalOptimiser, local_training
from kljax.federated.rounds import Rounds, federated_rounds


def fedavg(
    model: Model,
    loss: Loss,
    optimiser: LocalOptimiser,
    *,
    defence: Defence | None = None,
    local: dict | None = None,
    **options,
) -> Rounds:
    """Composes federated averaging, under any defence.

    Args:
      model: the network.
      loss: of the clients.
      optimiser: of the clients, see `kljax.local_training`.
      defence: None for `kljax.defences.none`.
      local: further options of `kljax.local_training`.
      options: of `kljax.federated.rounds.federated_rounds`.

    Reference: McMahan et al., AISTATS 2017, algorithm 1.
    """
    defence = defence or none()
    training = local_training(model, loss, defence, optimiser, **(local or {}))
    return federated_rounds(model, defence, training, **options)


def fedprox(
    model: Model, loss: Loss, optimiser: LocalOptimiser, *, strength: float, **options
) -> Rounds:
    """Composes FedProx: clients are held near the model they received.

    Args:
      strength: the paper's mu; 0 is FedAvg.

    Reference: Li et al., "Federated Optimization in Heterogeneous Networks"
    (MLSys 2020), equation 2.
    """
    local = {**(options.pop("local", None) or {}), "penalty": proximal(strength)}
    return fedavg(model, loss, optimiser, local=local, **options)


def fedkl(
    model: Model,
    loss: Loss,
    optimiser: LocalOptimiser,
    *,
    lock: KeyLock,
    fresh_private_keys: bool = False,
    **options,
) -> Rounds:
    """Composes FedKL: federated averaging of everything but the lock.

    Private keys and lock weights stay with the clients; all clients start from the
    lock weights that the server drew, each with a private key of its own.

    Args:
      lock: of the clients.
      fresh_private_keys: whether each client draws its private key anew in every
        round, a change of kljax's; one for all rounds otherwise, as in the paper.

    Reference: Ren, Deng, Xie, arXiv 2305.04095; official code methods/FedKL.py.
    """
    if fresh_private_keys:
        local = options.get("local") or {}
        options["local"] = {**local, "renew": new_private_key(lock)}
    return fedavg(model, loss, optimiser, defence=keylock(lock), **options)


def new_private_key(lock: KeyLock):
    """Makes ``(rng, Private) -> Private`` with a private key drawn anew.

    A client without a private key is left as it is.
    """

    def renew(rng: Rng, private: Private) -> Private:
        if not jax.tree.leaves(private.secret):
            return private
        return private._replace(secret=lock.private_key(rng))

    return renew


def proximal(strength: float):
    """Makes FedProx's penalty, ``strength / 2 |public - received|^2``.

    Raises:
      ValueError: for a negative strength.
    """
    if not strength >= 0:
        raise ValueError(f"strength must be >= 0, got {strength!r}")

    def penalty(public: Public, received: Public) -> Array:
        apart = optax.tree.sub(public, received)
        return strength / 2 * optax.tree.norm(apart, squared=True)

    return penalty
