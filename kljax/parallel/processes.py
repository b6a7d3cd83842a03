"""Processes: several of one job find out who they are.

After a roll-call they part again, and nobody waits for anybody: a peer that dies later
stops no one. Those who stay together have the devices of all.
"""

from typing import NamedTuple

import jax


class Place(NamedTuple):
    """One process among those of a job."""

    process: int  # from 0 on
    processes: int


ALONE = Place(0, 1)
MOST = 2**16  # processes; more than there ever were


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
      ValueError: if only some of the three are given, or if one is out of range.
      RuntimeError: if not all are there in time, or no cluster is found.
    """
    place = stay_together(coordinator, processes, process, timeout=timeout)
    # Whoever stays connected is ended when another one dies.
    jax.distributed.shutdown()
    return place


def stay_together(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    timeout: int = 300,
) -> Place:
    """Finds the place of this process, which stays connected with the others.

    Each has the devices of all from then on (`jax.devices`), and ends when another one
    dies. Arguments and errors are those of `roll_call`.
    """
    given = (coordinator, processes, process)
    if None in given and any(value is not None for value in given):
        raise ValueError(
            "a roll-call needs coordinator, processes and process together, got "
            f"{given}"
        )
    if process is not None:
        _check_place(coordinator, processes, process)
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
        return Place(jax.process_index(), jax.process_count())
    return Place(process, processes)


def _check_place(coordinator: str, processes: int, process: int) -> None:
    """Refuses what JAX would wait for in vain, or not understand."""
    if not 1 <= processes <= MOST:
        raise ValueError(f"processes must be from 1 to {MOST}, got {processes}")
    if not 0 <= process < processes:
        raise ValueError(
            f"process must be from 0 to {processes - 1}, one of {processes} processes, "
            f"got {process}"
        )
    host, _, port = coordinator.rpartition(":")
    number = int(port) if port.isdecimal() and len(port) <= 5 else 0
    if not host.strip() or not 1 <= number <= 65535:
        raise ValueError(
            f"coordinator must be HOST:PORT with a port from 1 to 65535, got "
            f"{coordinator!r}"
        )
