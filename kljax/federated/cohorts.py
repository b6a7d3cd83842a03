"""The clients of a round: checks of them, and what they give side by side."""

import jax
import jax.numpy as jnp
import numpy as np

from kljax.core.types import PyTree
from kljax.federated.aggregation import Aggregator, Gathered
from kljax.federated.clients import Batches, ClientState, Progress, Upload
from kljax.federated.server import ServerState
from kljax.parallel import gather_clients

# Of a block of clients: their numbers [b], and what each keeps, says and sends.
Block = tuple[np.ndarray, ClientState, Progress, PyTree]


def checked_cohort(cohort: np.ndarray, states: ClientState) -> np.ndarray:
    """Gives the cohort [n] of a round, each client of it there and there once.

    Raises:
      TypeError, ValueError, IndexError: see above.
    """
    cohort = np.asarray(cohort)
    kept = jax.tree.leaves(states)
    # Clients without any state (plain SGD, no defence) are as many as you like.
    count = len(kept[0]) if kept else np.inf
    if cohort.ndim != 1 or not np.issubdtype(cohort.dtype, np.integer):
        raise TypeError(f"the cohort must be whole numbers [n], got {cohort!r}")
    if not len(cohort):
        raise ValueError("the cohort is empty: a round needs a client")
    outside = cohort[(cohort < 0) | (cohort >= count)]
    if len(outside):
        raise IndexError(
            f"client {outside[0]} of the cohort does not exist: there are {count}"
        )
    if len(np.unique(cohort)) < len(cohort):
        raise ValueError(f"clients are repeated in the cohort {cohort.tolist()}")
    return cohort


def check_population(rule: Aggregator, cohort: np.ndarray) -> None:
    """Refuses clients that a rule cannot tell apart.

    Raises:
      ValueError: naming the one with the highest number.
    """
    if rule.population is not None and max(cohort) >= rule.population:
        raise ValueError(
            f"{rule.name} tells {rule.population} clients apart, numbers 0 to "
            f"{rule.population - 1}, and client {max(cohort)} is in the cohort"
        )


def check_examples(ids: np.ndarray, batches: Batches, examples: np.ndarray) -> None:
    """Refuses clients without examples.

    Raises:
      ValueError: naming the first of them.
    """
    empty = ids[~(examples > 0) | ~np.any(batches.valid, axis=1)]
    if len(empty):
        raise ValueError(
            f"client {empty[0]} has no examples: leave it out of the cohort, or give "
            "it some"
        )


def gather_uploads(
    rule: Aggregator, server: ServerState, blocks: list[Block]
) -> Gathered:
    """Puts what all finite clients gave side by side, those of all processes.

    Args:
      rule: that sees it.
      server: what the clients received.
      blocks: what they keep, say and send: a weight and what `rule.add` gives.
    """
    upload = Upload(server.public, server.stats)
    one = jax.eval_shape(rule.add, server, upload, jnp.zeros(()))
    number = jnp.zeros(())
    none = jax.tree.map(
        lambda x: np.zeros((0, *x.shape), x.dtype), ((number, one), (number, number))
    )
    parts = [
        (ids, (sent, (seen.loss, seen.accuracy)))
        for ids, seen, sent in of_finite(blocks)
    ]
    ids, rows = side_by_side([(np.zeros(0, int), none), *parts])
    clients, ((weights, uploads), said) = gather_clients(ids, rows)
    return Gathered(clients.astype(np.int32), weights, uploads, *said)


def of_finite(blocks: list[Block]) -> list[tuple[np.ndarray, Progress, PyTree]]:
    """Picks clients that are finite: their numbers, what they say and send."""
    return [
        (ids[seen.finite], *jax.tree.map(lambda x, f=seen.finite: x[f], (seen, sent)))
        for ids, _, seen, sent in blocks
    ]


def side_by_side(parts: list[PyTree]) -> PyTree:
    """Concatenates trees along the first axis of each leaf."""
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)


def write_rows(states: PyTree, rows: np.ndarray | int, values: PyTree) -> None:
    """Writes values in place, into rows of each leaf's first axis."""

    def write(old, new):
        old[rows] = new

    jax.tree.map(write, states, values)


def collect_progress(cohort: np.ndarray, blocks: list[Block]) -> Progress:
    """Puts the progress of blocks together, in the order of the cohort."""
    place = {client: n for n, client in enumerate(cohort.tolist())}
    progress = Progress(
        np.full(len(cohort), np.nan),
        np.full(len(cohort), np.nan),
        np.ones(len(cohort), bool),
    )
    for ids, _, seen, _ in blocks:
        rows = [place[client] for client in ids.tolist()]
        write_rows(progress, rows, seen)
    return progress
