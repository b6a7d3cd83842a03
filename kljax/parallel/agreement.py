"""What several processes of one job tell each other, while they stay connected.

Every function here is called by all processes of a job (`jax.distributed`), at the same
place. Alone, a process has nobody to ask.
"""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from kljax.core.types import PyTree


def leads() -> bool:
    """Tells whether this is the process that writes files: number 0, or alone."""
    return jax.process_index() == 0


@contextlib.contextmanager
def agreed() -> Iterator[None]:
    """Ends in every process if what is inside fails in one.

    Nothing inside may wait for other processes.

    Raises:
      RuntimeError: in a process where it went well, if it failed in another.
    """
    if jax.process_count() == 1:
        yield
        return
    failure = None
    try:
        yield
    except Exception as error:
        failure = error
    failed = multihost_utils.process_allgather(np.asarray(failure is not None))
    if failure is not None:
        raise failure
    if np.any(failed):
        others = ", ".join(map(str, np.flatnonzero(failed)))
        raise RuntimeError(
            f"process {others} of this job failed, and says itself why; this one, "
            f"{jax.process_index()}, ends with it"
        )


def from_first(value: Any) -> Any:
    """Gives what process 0 has; through JSON, where tuples are lists.

    Args:
      value: of JSON; what other processes give does not matter.
    """
    if jax.process_count() == 1:
        return value
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    size = int(multihost_utils.process_allgather(np.asarray(len(text)))[0])
    # All processes give as many bytes.
    given = np.zeros(size, np.uint8)
    given[: len(text)] = text[:size]
    every = multihost_utils.process_allgather(given)
    return json.loads(np.asarray(every)[0].tobytes())


def arrays_from_first(tree: PyTree) -> PyTree:
    """Gives the arrays that process 0 has, as NumPy arrays that may be written.

    Args:
      tree: of host arrays, of the same shapes and dtypes in all processes.
    """
    if jax.process_count() == 1:
        return tree
    # Leaf by leaf: only one is there once for each process.
    return jax.tree.map(
        lambda x: np.array(multihost_utils.process_allgather(np.asarray(x))[0]), tree
    )


def fill_in_clients(states: PyTree) -> None:
    """Writes the rows of clients that other processes own; all have all rows then.

    Args:
      states: of all clients: host arrays with a leading axis [N], which are written in
        place. Client i belongs to process ``i % process_count``, as in `sum_clients`.
    """
    if jax.process_count() == 1:
        return

    def fill_in(rows: np.ndarray) -> None:
        every = multihost_utils.process_allgather(rows)
        clients = np.arange(len(rows))
        rows[:] = np.asarray(every)[clients % jax.process_count(), clients]

    jax.tree.map(fill_in, states)


def true_anywhere(marks: np.ndarray) -> np.ndarray:
    """Tells of each mark [n] whether any process has it."""
    if jax.process_count() == 1:
        return marks
    return np.any(multihost_utils.process_allgather(np.asarray(marks)), axis=0)
