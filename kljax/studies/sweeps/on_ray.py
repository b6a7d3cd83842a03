"""Sweeps on a Ray cluster: how it is reached, and what is sent to its machines."""

import contextlib
import os
import socket
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from kljax.core.registry import own_functions
from kljax.studies.sweeps import Cell
from kljax.studies.sweeps.computing import Limits
from kljax.studies.sweeps.ray_cluster import Cluster, brief
from kljax.studies.sweeps.ray_worker import Site, paths_read, versions

AUTO = "auto"  # the cluster that this machine belongs to
LOCAL = "local"  # one that is started here, for this job alone
REACH_S = 10  # seconds for a connection


@contextlib.contextmanager
def connect(
    address: str,
    cells: Iterable[Cell],
    limits: Limits,
    cpus: int | None = None,
    on_news: Callable[[str], Any] = lambda line: None,
) -> Iterator[Cluster]:
    """Connects with a Ray cluster, and waits for its first worker.

    There is a worker for every GPU or, if no machine has one by now, for every so many
    cores. Machines that join later get workers, too. kljax and what was imported from
    the current folder are sent to them; everything else must be installed there, and
    files that cells read must be there under the same path.

    Args:
      address: HOST:PORT of its head, ``auto`` for the cluster of this machine (or that
        of ``RAY_ADDRESS``), ``local`` for one that is started here.
      cells: that will be computed.
      limits: of each worker.
      cpus: cores of a worker; None for none beside a GPU, or all of its machine.
      on_news: called with a line about workers that join, are lost or are refused.

    Raises:
      ImportError: without Ray.
      ValueError: for another address, and if no machine has the versions and files of
        this one.
      RuntimeError: for a cluster that cannot be reached, or has no worker in time.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError(
            "--ray needs Ray, which is not installed: pip install 'kljax[ray]'"
        ) from error
    _check_reachable(address)
    configs = [cell.config for cell in cells]
    read = dict.fromkeys(path for config in configs for path in paths_read(config))
    for value in {value for config in configs for value in vars(config).values()}:
        own_functions(value)  # which imports what they are in
    # Ray waits for a head that is gone by the quarter of an hour.
    os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "1")
    modules = {"py_modules": modules_here(), "excludes": ["__pycache__", "*.pyc"]}
    options = {"include_dashboard": False} if address == LOCAL else {}
    options |= {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        with warnings.catch_warnings():  # of JAX's threads, which its start forks
            warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
            ray.init(address, runtime_env=modules, **options)
    except Exception as error:
        raise RuntimeError(
            f"no Ray cluster at {address!r}: {brief(error)}; is it started, and with "
            "the Ray and Python of here?"
        ) from error
    try:
        site = Site(os.getcwd(), tuple(read), versions())
        cluster = Cluster(ray, site, limits, cpus, on_news)
        cluster.wait_for_worker()
        yield cluster
    finally:
        ray.shutdown()


def modules_here() -> list[str]:
    """Lists kljax, and the modules and packages imported from the current folder."""
    here, modules = Path.cwd(), {str(Path(__file__).absolute().parents[2]): None}
    for name, module in list(sys.modules.items()):
        file = Path(getattr(module, "__file__", None) or "/").absolute()
        if here in file.parents:
            first = here / file.relative_to(here).parts[0]
            # Not those in a virtual environment below.
            if first.stem == name.partition(".")[0]:
                modules[str(first)] = None
    return list(modules)


def _check_reachable(address: str) -> None:
    """Refuses an address that nobody answers at, which takes Ray minutes."""
    if address == AUTO:
        address = os.environ.get("RAY_ADDRESS", AUTO)
    if address in (AUTO, LOCAL):
        return
    host, _, port = address.rpartition(":")
    number = int(port) if port.isdecimal() and len(port) <= 5 else 0
    if not host.strip() or "/" in host or not 1 <= number <= 65535:
        raise ValueError(
            f"--ray takes HOST:PORT of a Ray head, {AUTO} or {LOCAL}, got {address!r}; "
            "the command runs on a machine of the cluster"
        )
    try:
        socket.create_connection((host, number), timeout=REACH_S).close()
    except (OSError, UnicodeError) as error:
        raise RuntimeError(
            f"no Ray cluster at {address!r}: {error}; start one by `ray start --head`"
        ) from error
