"""Failures: cells that raised, with the command that reruns each."""

import dataclasses
import shlex
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

from kljax.core.files import read_json, write_json
from kljax.studies.config import LeakConfig
from kljax.studies.sweeps import Cell

REMEDY = "remove it: the cell counts as missing, and is tried again"


class Failure(TypedDict):
    """What is on record of a cell that raised."""

    cell: str
    point: dict[str, str]
    error: str
    traceback: str
    command: str


def make_failure(cell: Cell, error: BaseException) -> Failure:
    """Says why a cell has not all of its rows."""
    return Failure(
        cell=cell.id,
        point=cell.point,
        error=f"{type(error).__name__}: {error}",
        traceback="".join(traceback.format_exception(error)),
        command=command_of(cell.config),
    )


def write_failure(folder: Path, failure: Failure) -> None:
    """Puts a failure on record."""
    (folder / "failures").mkdir(exist_ok=True)
    write_json(folder / "failures" / f"{failure['cell']}.json", failure)


def read_failures(folder: Path) -> list[Failure]:
    """Reads all failures of a study, by id of the cell.

    Raises:
      DamagedFile: if one is not what was written.
    """
    paths = sorted((folder / "failures").glob("*.json"))
    failures = [
        read_json(path, Failure, remedy=REMEDY) for path in paths if path.name[0] != "."
    ]
    # Somebody who works on the study may have made one good just now.
    return [record for record in failures if record is not None]


def forget_failures(folder: Path, cells: Iterable[str]) -> None:
    """Removes the records of cells, by id, that are made good."""
    for cell in cells:
        (folder / "failures" / f"{cell}.json").unlink(missing_ok=True)


def command_of(config: LeakConfig) -> str:
    """Writes the command that runs a configuration by itself."""
    words = ["kljax", "leak"]
    defaults = LeakConfig()
    for field in dataclasses.fields(LeakConfig):
        value = getattr(config, field.name)
        if field.name == "layout" or value == getattr(defaults, field.name):
            continue
        name = {"from_run": "from"}.get(field.name, field.name.replace("_", "-"))
        if value is True:
            words.append(f"--{name}")
        elif isinstance(value, tuple):
            words += [f"--{name}", *value]
        else:
            words += [f"--{name}", str(value)]
    return shlex.join(words)
