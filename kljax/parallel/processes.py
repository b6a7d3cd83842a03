"""Processes: several of one job find out who they are.

They stay together, and have the devices of all.
"""

import jax

MOST = 2**16  # processes; more than there ever were


def stay_together(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    timeout: int = 300,
) -> None:
    """Connects this process with the others of its job.

    Each has the devices of all from then on (`jax.devices`), and ends when another one
    dies. Must come before anything else of JAX is used.

    Args:
      coordinator: HOST:PORT of process 0; None with the other two for what a cluster
        (Slurm, Open MPI, Cloud TPU, ...) says by itself.
      processes, process: how many there are, and which one this is.
      timeout: seconds to wait for the others.

    Raises:
      ValueError: if only some of the three are given, or if one is out of range.
      RuntimeError: if not all are there in time, or no cluster is found.
    """
    given = (coordinator, processes, process)
    if None in given and any(value is not None for value in given):
        raise ValueError(
            "several processes of a job: it needs coordinator, processes and process "
            f"together, got {given}"
        )
    if process is not None:
        _check_place(coordinator, processes, process)
    try:
        jax.distributed.initialize(
            coordinator, processes, process, initialization_timeout=timeout
        )
    except Exception as error:
        raise RuntimeError(
            f"the processes did not meet: {error}; are all started, with the same "
            "coordinator?"
        ) from error


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
