"""FedBoosting: clients count by how well their networks do on everybody's examples.

Each client holds validation examples back; the network of each client is tried on those
of all. Letters: n clients in a round, i whose network, j whose examples.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from kljax.core.checks import shown, whole
from kljax.core.types import Array, PyTree
from kljax.federated.aggregation.aggregator import Aggregator
from kljax.federated.clients import Upload
from kljax.federated.server import ServerState

OWN_SHARE = 0.9  # of its own change in what a client shows to others, if it mixes
TINY = 1e-12  # in place of a loss that is 0


class Validation(NamedTuple):
    """How networks do on validation examples, the evidence that FedBoosting needs."""

    loss: Array  # [n, n] of network i on the examples of client j
    accuracy: Array  # [n, n]


def fedboost_weights(
    validation: Array, training: Array, metric: Literal["loss", "accuracy"] = "loss"
) -> Array:
    """Computes the weights of n clients, which sum to 1.

    With V_i the mean of network i over the examples of all clients, and T_i its own
    measure while it trained:

      loss      ``r_i = 1 / V_i  *  (1 / T_i) / sum_j (1 / T_j)``
      accuracy  ``r_i = V_i  *  T_i / sum_j T_j``

    and the weights are ``r_i / sum_j r_j``. Where all accuracies are 0 all weights are
    equal.

    Args:
      validation: loss or accuracy [n, n] of network i on the examples of client j.
      training: the same [n] of each client on what it trained on.
      metric: which of the two it is.

    Returns:
      [n].

    Raises:
      ValueError: for an unknown metric, and shapes that are not [n, n] and [n].

    Reference: Ren et al., "FedBoosting: Federated Learning with Gradient Protected
    Boosting for Text Recognition" (Neurocomputing 2023); official code, fed_server.py.
    """
    if metric not in ("loss", "accuracy"):
        raise ValueError(f"metric must be 'loss' or 'accuracy', got {metric!r}")
    validation, training = jnp.asarray(validation), jnp.asarray(training)
    if training.ndim != 1 or validation.shape != 2 * training.shape:
        raise ValueError(
            f"validation must be [n, n] and training [n], got {validation.shape} and "
            f"{training.shape}"
        )
    everywhere = jnp.mean(validation, axis=1)
    if metric == "loss":
        everywhere = 1 / jnp.maximum(everywhere, TINY)
        training = 1 / jnp.maximum(training, TINY)
    # Of each the largest is 1: products of inverses may be beyond float32.
    everywhere /= jnp.maximum(jnp.max(everywhere), TINY)
    training /= jnp.maximum(jnp.max(training), TINY)
    products = everywhere * training
    total = jnp.sum(products)
    return jnp.where(total > 0, products, 1) / jnp.where(
        total > 0, total, len(products)
    )


def fedboosting(rounded: int = 0, mixed: int = 0) -> Aggregator:
    """Makes the mean of uploads by the weights of FedBoosting, of losses.

    The weights are `fedboost_weights` of this round, whatever the number of examples.
    It `needs` the evidence ``validation``: a tenth of each client's examples, which it
    does not train on. It needs two clients.

    Args:
      rounded: S, by which the published code encrypts: a weight p counts as
        ``round(S p) / S``. Such weights need not sum to 1, so that the whole change of
        a round is longer or shorter; the norm statistics are divided by their sum. The
        code has 100. 0 leaves weights as they are.
      mixed: 1 for what the published code does where its flag "DP" is set: others try
        the network of .9 of a client's change and .1 of the mean change of the rest.
        The changes that are aggregated are not mixed. It is **not** differential
        privacy: nothing is clipped and no noise is added. 0 lets others try a client's
        network itself.

    Raises:
      ValueError: for S that is no whole number, and for `mixed` that is not 0 or 1.

    Reference: see `fedboost_weights`.
    """
    return _boosting("fedboosting", "loss", rounded, mixed)


def fedboosting_accuracy(rounded: int = 0, mixed: int = 0) -> Aggregator:
    """Makes the mean of uploads by the weights of FedBoosting, of accuracies.

    Args:
      rounded, mixed: see `fedboosting`.
    """
    return _boosting("fedboosting-accuracy", "accuracy", rounded, mixed)


def mix_changes(changes: PyTree) -> PyTree:
    """Mixes .9 of each client's change [n, ...] with .1 of the mean of the others'."""

    def mixed(x: Array) -> Array:
        others = (jnp.sum(x, axis=0, keepdims=True) - x) / max(len(x) - 1, 1)
        return OWN_SHARE * x + (1 - OWN_SHARE) * others

    return jax.tree.map(mixed, changes)


def _boosting(
    name: str, metric: Literal["loss", "accuracy"], rounded: int, mixed: int
) -> Aggregator:
    if not whole(rounded) or rounded < 0:
        raise ValueError(
            f"{name} rounds weights to parts of a whole number >= 1, or not at all by "
            f"0, got {shown(rounded)}"
        )
    if not whole(mixed) or mixed not in (0, 1):
        raise ValueError(f"{name} mixes by 1, or not by 0, got {shown(mixed)}")
    evidence = "mixed_validation" if mixed else "validation"

    def finish(
        server: ServerState, uploads: Upload, weights: Array, **needs
    ) -> tuple[Upload, PyTree]:
        del weights
        found: Validation = needs[evidence]
        shares = fedboost_weights(getattr(found, metric), needs[metric], metric)
        counted = jnp.round(shares * rounded) / rounded if rounded else shares
        total = jnp.sum(counted)
        of_stats = jnp.where(total > 0, counted / jnp.maximum(total, TINY), shares)

        def summed(by: Array, tree: PyTree) -> PyTree:
            return jax.tree.map(
                lambda x: jnp.tensordot(by, x, axes=1, precision="highest"), tree
            )

        upload = Upload(summed(counted, uploads.delta), summed(of_stats, uploads.stats))
        return upload, server.aggregator

    return Aggregator(
        finish, gathers=True, needs=(metric, evidence), least=2, name=name
    )
