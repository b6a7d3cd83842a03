"""Bulyan: uploads selected by Krum one after another, then trimmed by coordinate.

An upload is one vector here: the change of the weights together with the norm
statistics. Every client counts once, whatever its number of examples: the paper's
workers have a gradient each.

Reference: El Mhamdi, Guerraoui, Rouault, "The Hidden Vulnerability of Distributed
Learning in Byzantium" (ICML 2018), section 4.
"""

import jax
import jax.numpy as jnp

from kljax.core.types import Array
from kljax.federated.aggregation.aggregator import Aggregator
from kljax.federated.aggregation.options import check_attackers
from kljax.federated.aggregation.order_statistics import middle
from kljax.federated.aggregation.vectors import (
    as_rows,
    sort_clients,
    squared_distances,
)
from kljax.federated.clients import Upload
from kljax.federated.server import ServerState


def bulyan(attackers: int = 1) -> Aggregator:
    """Makes Bulyan over Krum.

    First n - 2F uploads are selected: Krum selects one, this one is taken out, and Krum
    goes on with the others. Then of each coordinate the n - 4F values that are nearest
    to their median are averaged; of two at one distance, the smaller is nearer.

    Krum's score among m uploads is the sum of the squared distances to the m - F - 2
    others that are nearest; of equal ones, the client with the least number is taken.
    The last uploads are selected among fewer than the 2F + 3 that Krum's own guarantee
    asks for, and some by their number alone: with one neighbour to count the nearest
    two are as near to each other (the last upload if F = 2, the last but one if F = 1),
    with none all are alike (the last if F = 1). The paper counts on a majority of those
    selected to be honest, whoever the last ones are.

    It needs 4F + 3 clients.

    Args:
      attackers: F.

    Raises:
      ValueError: for F that is no whole number >= 1.
    """
    check_attackers("bulyan", attackers)

    def finish(server: ServerState, uploads: Upload, weights: Array):
        del weights
        selected = krum_sequence(squared_distances(as_rows(uploads)), attackers)

        def of_coordinates(x: Array) -> Array:
            return mean_around_median(x[selected], 2 * attackers)

        return jax.tree.map(of_coordinates, uploads), server.aggregator

    return Aggregator(
        finish, gathers=True, least=4 * attackers + 3, name=f"bulyan={attackers}"
    )


def krum_sequence(apart: Array, attackers: int) -> Array:
    """Lists n - 2F clients in the order in which Krum selects them.

    Whoever loses a neighbour to the selection loses one neighbour and no more: the one
    selected if it was among the near ones, and else the farthest of these. So the
    near ones are held as a matrix of which an entry a row is erased for each client
    selected, and n clients cost n^3 additions and not n^3 log n comparisons.

    Args:
      apart: squared distances [n, n].
      attackers: F; n >= 2F + 2.
    """
    count = len(apart)
    everyone = jnp.arange(count)
    apart = jnp.where(jnp.eye(count, dtype=bool), jnp.inf, apart)  # nobody is near to
    order = jnp.argsort(apart, axis=1)  # itself; [n, n], the nearest first
    place = jnp.zeros_like(order).at[everyone[:, None], order].set(everyone[None])
    farthest = jnp.full(count, count - attackers - 3)  # its place, of the near ones
    near = jnp.where(place <= farthest[:, None], apart, 0.0)

    def select(carry, _):
        near, farthest, waiting = carry
        sums = jnp.matmul(near, jnp.ones(count), precision="highest")
        scores = jnp.where(waiting, sums, jnp.inf)
        # Scores beyond float32 are all alike, and nobody comes twice.
        least = jnp.min(scores)
        best = jnp.argmax(waiting & ((scores == least) | jnp.isinf(least)))
        waiting = waiting.at[best].set(False)
        was_near = place[:, best] <= farthest
        last = order[everyone, farthest]
        near = near.at[everyone, jnp.where(was_near, best, last)].set(0.0)
        farthest = jnp.where(was_near, farthest, farthest - 1)

        def gone(farthest: Array) -> Array:
            there = order[everyone, jnp.maximum(farthest, 0)]
            return (farthest >= 0) & ~waiting[there]

        farthest = jax.lax.while_loop(
            lambda place: jnp.any(gone(place)),
            lambda place: jnp.where(gone(place), place - 1, place),
            farthest,
        )
        return (near, farthest, waiting), best

    start = near, farthest, jnp.ones(count, bool)
    return jax.lax.scan(select, start, length=count - 2 * attackers)[1]


def mean_around_median(x: Array, dropped: int) -> Array:
    """Averages, of each coordinate [n, ...], all values but those farthest off.

    Args:
      x: [n, ...].
      dropped: how many values are left out, those farthest from the median.
    """
    ordered = sort_clients(x)
    kept = len(x) - dropped
    centre = middle(ordered)[..., None]
    # The nearest values are neighbours in the order: as many are left out below as
    # are farther off than what would take their place above.
    below, above = ordered[..., :dropped], ordered[..., kept:]
    first = jnp.sum(centre - below > above - centre, axis=-1, keepdims=True)
    place = jax.lax.broadcasted_iota(jnp.int32, ordered.shape, ordered.ndim - 1)
    inside = (first <= place) & (place < first + kept)
    return jnp.sum(jnp.where(inside, ordered, 0), axis=-1) / kept
