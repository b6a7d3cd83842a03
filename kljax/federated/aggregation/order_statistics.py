"""Gathering rules that sort each coordinate over clients by itself.

Every client counts once, whatever its number of examples: the paper's clients have
equally many. Norm statistics are coordinates like weights.

Reference: Yin et al., "Byzantine-Robust Distributed Learning: Towards Optimal
Statistical Rates" (ICML 2018), definitions 1 and 2.
"""

import jax
import jax.numpy as jnp

from kljax.core.types import Array, PyTree
from kljax.federated.aggregation.aggregator import Aggregator
from kljax.federated.aggregation.options import check_attackers
from kljax.federated.aggregation.vectors import sort_clients
from kljax.federated.clients import Upload
from kljax.federated.server import ServerState


def coordinate_median() -> Aggregator:
    """Makes the median of each coordinate; of an even n, the mean of the middle two.

    It needs three clients: a median of fewer is their mean.
    """

    def finish(server: ServerState, uploads: Upload, weights: Array):
        del weights
        return jax.tree.map(median_of, uploads), server.aggregator

    def median_of(x: Array) -> Array:
        return middle(sort_clients(x))

    return Aggregator(finish, gathers=True, least=3, name="median")


def trimmed_mean(attackers: int = 1) -> Aggregator:
    """Makes the mean of each coordinate without its F largest and F smallest values.

    It needs 2F + 1 clients; of so many it is the median.

    Args:
      attackers: F; the paper's beta is F / n.

    Raises:
      ValueError: for F that is no whole number >= 1.
    """
    check_attackers("trimmed-mean", attackers)

    def finish(server: ServerState, uploads: Upload, weights: Array):
        def trimmed(x: Array) -> Array:
            ordered = sort_clients(x)
            return jnp.mean(ordered[..., attackers : len(x) - attackers], axis=-1)

        del weights
        kept: PyTree = jax.tree.map(trimmed, uploads)
        return kept, server.aggregator

    return Aggregator(
        finish,
        gathers=True,
        least=2 * attackers + 1,
        name=f"trimmed-mean={attackers}",
    )


def middle(ordered: Array) -> Array:
    """Gives the median of what is sorted along the last axis."""
    count = ordered.shape[-1]
    low, high = ordered[..., (count - 1) // 2], ordered[..., count // 2]
    return low + (high - low) / 2
