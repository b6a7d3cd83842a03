"""Checks of the clients of a round."""

import jax
import numpy as np

from kljax.federated.clients import Batches, ClientState


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
