"""The roll-call: several processes find out who they are, and part again.

They meet once, over `jax.distributed`, and after that nobody waits for anybody: a peer
that dies later stops no one.
"""

from typing import NamedTuple

import jax


class Place(NamedTuple):
    """One process among those of a job."""

    process: int  # from 0 on
    processes: int


ALONE = Place(0, 1)


def roll_call(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    timeout: int = 300,
) -> Place:
    """Finds the place of this process.

    Must come before anything else of JAX is used.

    Args:
      coordinator: HOST:PORT of process 0; None with the other two for what a cluster
        (Slurm, Open MPI, Cloud TPU, ...) says by itself.
      processes, process: how many there are, and which one this is.
      timeout: seconds to wait for the others.

    Raises:
      ValueError: if only some of the three are given.
      RuntimeError: if not all are there in time, or no cluster is found.
    """
    given = (coordinator, processes, process)
    if None in given and any(value is not None for value in given):
        raise ValueError(
            "a roll-call needs coordinator, processes and process together, got "
            f"{given}"
        )
    try:
        jax.distributed.initialize(
            coordinator, processes, process, initialization_timeout=timeout
        )
    except Exception as error:
        raise RuntimeError(
            f"the roll-call failed: {error}; are all processes started, with the same "
            "coordinator?"
        ) from error
    if process is None:  # the cluster has said it
        place = Place(jax.process_index(), jax.process_count())
    else:
        place = Place(process, processes)
    # Whoever stays connected is ended when another one dies.
    jax.distributed.shutdown()
    return place
