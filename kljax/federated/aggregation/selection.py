"""Gathering rules that select whole uploads by their distances: Krum and multi-Krum.

An upload is one vector here: the change of the weights together with the norm
statistics. Every client counts once, whatever its number of examples: the paper's
workers have a gradient each.

Reference: Blanchard et al., "Machine Learning with Adversaries: Byzantine Tolerant
Gradient Descent" (NeurIPS 2017), section 4, and multi-Krum in section 6.
"""

import jax
import jax.numpy as jnp

from kljax.core.checks import shown, whole
from kljax.core.types import Array
from kljax.federated.aggregation.aggregator import Aggregator
from kljax.federated.aggregation.options import check_attackers
from kljax.federated.aggregation.vectors import as_rows, sort_last, squared_distances
from kljax.federated.clients import Upload
from kljax.federated.server import ServerState


def krum(attackers: int = 1) -> Aggregator:
    """Makes Krum: the one upload that is nearest to its neighbours.

    The score of an upload is the sum of its squared distances to the n - F - 2 others
    that are nearest to it. The upload with the least score is the aggregate; of equal
    ones, that of the client with the least number.

    It needs 2F + 3 clients.

    Args:
      attackers: F.

    Raises:
      ValueError: for F that is no whole number >= 1.
    """
    check_attackers("krum", attackers)

    def finish(server: ServerState, uploads: Upload, weights: Array):
        del weights
        best = jnp.argmin(krum_scores(uploads, attackers))
        return jax.tree.map(lambda x: x[best], uploads), server.aggregator

    return Aggregator(
        finish, gathers=True, least=2 * attackers + 3, name=f"krum={attackers}"
    )


def multi_krum(attackers: int = 1, selected: int | None = None) -> Aggregator:
    """Makes multi-Krum: the mean of the M uploads with the least scores of Krum.

    It needs 2F + 3 clients, and M.

    Args:
      attackers: F.
      selected: M; None for n - F, as many as are honest.

    Raises:
      ValueError: for F or M that is no whole number >= 1.
    """
    check_attackers("multi-krum", attackers)
    if selected is not None and not (whole(selected) and selected >= 1):
        raise ValueError(
            f"multi-krum selects a whole number of uploads >= 1, got {shown(selected)}"
        )

    def finish(server: ServerState, uploads: Upload, weights: Array):
        count = len(weights) - attackers if selected is None else selected
        best = jnp.argsort(krum_scores(uploads, attackers))[:count]
        means = jax.tree.map(lambda x: jnp.mean(x[best], axis=0), uploads)
        return means, server.aggregator

    least = max(2 * attackers + 3, selected or 1)
    return Aggregator(finish, gathers=True, least=least, name=f"multi-krum={attackers}")


def krum_scores(uploads: Upload, attackers: int) -> Array:
    """Computes Krum's score of each of n uploads [n]; less is nearer to others."""
    apart = squared_distances(as_rows(uploads))
    others = jnp.where(jnp.eye(len(apart), dtype=bool), jnp.inf, apart)
    return jnp.sum(sort_last(others)[:, : len(apart) - attackers - 2], axis=1)
