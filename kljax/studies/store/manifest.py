"""The manifest of a study: its cells, and how they are cut into parts; never changed
but by adding cells.

What is finished stays valid because every part follows from the manifest alone: cells
that were added together are a *generation*, cells of a generation that share a
compilation are a *group*, and the victims of a group, one cell after another, are cut
into *chunks*. A chunk becomes one part file.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kljax.core.files import DamagedFile, converted, read_json, write_json
from kljax.core.provenance import collect_provenance
from kljax.studies.store.form import Entry, Manifest, Versioned, contradictions
from kljax.studies.sweeps import (
    Cell,
    Grid,
    Sweep,
    cell_from_json,
    cell_to_json,
    difference,
    groups,
    sweep_to_dict,
)

SCHEMA_VERSION = 1  # the newest manifest that is understood
JOB = "sweep"
# Victims in one part: what a kill may cost. A minute's work on two cores, or less.
PART = 64
MOST_PARTS = 1_000_000  # files in one folder


REMEDY = "restore it from a copy, or run the sweep file into another folder"


class Piece(NamedTuple):
    """Some victims of one cell, from `first` up to but not `end`."""

    cell: Cell
    first: int
    end: int

    @property
    def name(self) -> str:
        """Names the piece, as parts list what they hold."""
        return f"{self.cell.id}:{self.first}-{self.end}"


class Chunk(NamedTuple):
    """What is run and written together."""

    name: str  # of the part file
    pieces: tuple[Piece, ...]


class Group(NamedTuple):
    """Cells that one compiled function runs, and their chunks."""

    name: str
    cells: tuple[Cell, ...]
    chunks: tuple[Chunk, ...]


def open_study(
    folder: Path,
    sweep: Sweep,
    grid: Grid,
    *,
    part: int | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Makes the manifest of a study, or goes on with the one that is there.

    A sweep file that only adds cells extends the study by a generation.

    Args:
      folder: of the study.
      sweep, grid: the file, and its cells.
      part: victims in one part; None for what the study has, or `PART`.
      provenance: of a new study, where it is not that of this process.

    Returns:
      The manifest.

    Raises:
      FileExistsError: if `folder` holds something else, or a study of which the sweep
        changes cells, options or the size of parts; the differences are named.
      ValueError: for a part of no victims.
    """
    manifest = make_manifest(folder.name, sweep, grid, part)
    make_folder(folder)
    there = read_manifest(folder, missing_ok=True)
    if there is not None:
        return _extended(folder, there, sweep, grid, part)
    manifest |= provenance or {}
    write_json(folder / "manifest.json", manifest)
    return manifest


def make_folder(folder: Path) -> None:
    """Makes the folder of a study, unless it is there.

    Raises:
      FileExistsError: if `folder` is or holds something else.
      ValueError: see `read_manifest`.
    """
    if read_manifest(folder, missing_ok=True) is not None:
        return
    # Killed before its manifest was whole, a study has left nothing but hidden files.
    if folder.exists() and (
        not folder.is_dir() or any(p.name[0] != "." for p in folder.iterdir())
    ):
        raise FileExistsError(
            f"{str(folder)!r} exists and is no study of kljax sweep: name another"
        )
    folder.mkdir(parents=True, exist_ok=True)


def make_manifest(
    name: str, sweep: Sweep, grid: Grid, part: int | None = None
) -> dict[str, Any]:
    """Makes the manifest of a new study, and writes nothing.

    Args:
      name: of the study.
      sweep, grid, part: see `open_study`.

    Raises:
      ValueError: for a part of no victims, and for too many parts.
    """
    part = PART if part is None else part
    if part < 1:
        raise ValueError(f"a part needs at least 1 victim, got {part}")
    victims = sum(cell.config.victims for cell in grid.cells)
    if victims // part > MOST_PARTS:
        raise ValueError(
            f"{victims:,} victims in parts of {part} are {victims // part:,} files, "
            f"and a study has at most {MOST_PARTS:,}: take fewer, or larger parts"
        )
    return {
        "schema_version": SCHEMA_VERSION,
        "job": JOB,
        "name": name,
        "sweep": sweep_to_dict(sweep),
        "axes": _axes(sweep),
        "excluded": grid.excluded,
        "illegal": grid.illegal,
        "part": part,
        "cells": _entries(grid.cells, 0),
        **collect_provenance(),
    }


def read_manifest(folder: Path, *, missing_ok: bool = False) -> Manifest | None:
    """Reads the manifest of a study.

    Raises:
      FileNotFoundError: if there is none, unless that is fine.
      DamagedFile: if it is not what was written.
      ValueError: if it is of something else, or of a newer kljax.
    """
    path = folder / "manifest.json"
    try:
        manifest = read_json(path, dict[str, Any], remedy=REMEDY)
    except NotADirectoryError:
        manifest = None
    if manifest is None:
        if missing_ok:
            return None
        raise FileNotFoundError(f"{str(folder)!r} is no study: it has no manifest.json")
    if manifest.get("job") != JOB:
        raise ValueError(f"{path} is not of a study of kljax sweep")
    version = converted(manifest, Versioned, path, remedy=REMEDY)["schema_version"]
    if version > SCHEMA_VERSION:
        raise ValueError(
            f"{path} is of a newer kljax (schema version {version}, this one reads up "
            f"to {SCHEMA_VERSION})"
        )
    converted(manifest, Manifest, path, remedy=REMEDY)
    for place, what in contradictions(manifest):
        raise DamagedFile(path, what, remedy=REMEDY, place=place)
    return manifest


def cells_of(manifest: dict[str, Any], folder: Path | None = None) -> tuple[Cell, ...]:
    """Reads the cells of a manifest.

    Args:
      manifest: see `read_manifest`.
      folder: that it was read from, to be named in errors.

    Raises:
      DamagedFile: for a cell that cannot be.
    """
    return tuple(_cell(entry, folder) for entry in manifest["cells"])


def plan(manifest: dict[str, Any], folder: Path | None = None) -> list[Group]:
    """Cuts a study into groups and chunks; a function of the manifest alone.

    `folder`, that it was read from, is named in errors.
    """
    generations: dict[int, list[Cell]] = {}
    for entry in manifest["cells"]:
        generations.setdefault(entry["generation"], []).append(_cell(entry, folder))
    planned = []
    for generation, cells in sorted(generations.items()):
        for number, members in enumerate(groups(cells).values()):
            name = f"{generation:02d}-{number:04d}"
            chunks = tuple(
                Chunk(f"{name}-{n:05d}", pieces)
                for n, pieces in enumerate(_cut(members, manifest["part"]))
            )
            planned.append(Group(name, members, chunks))
    return planned


def _cell(entry: Entry, folder: Path | None = None) -> Cell:
    try:
        return cell_from_json(entry)
    except ValueError as error:
        place = f"cell {entry['id']}"
        path = Path("manifest.json") if folder is None else folder / "manifest.json"
        raise DamagedFile(path, str(error), remedy=REMEDY, place=place) from error


def _cut(cells: Sequence[Cell], size: int) -> Iterator[tuple[Piece, ...]]:
    """Cuts the victims of all cells, in order, into chunks of `size`."""
    pieces: list[Piece] = []
    left = size
    for cell in cells:
        first = 0
        while first < cell.config.victims:
            end = min(first + left, cell.config.victims)
            pieces.append(Piece(cell, first, end))
            left -= end - first
            first = end
            if not left:
                yield tuple(pieces)
                pieces, left = [], size
    if pieces:
        yield tuple(pieces)


def _extended(
    folder: Path, there: dict[str, Any], sweep: Sweep, grid: Grid, part: int | None
) -> dict[str, Any]:
    change = difference(cells_of(there, folder), grid.cells)
    changes = list(change.changes)
    options = there["sweep"]["options"]
    for name, value in sweep.options._asdict().items():
        if options.get(name) != value:
            changes.append(f"option {name}: {options.get(name)} there, {value} here")
    if part not in (None, there["part"]):
        changes.append(f"victims in a part: {there['part']} there, {part} here")
    if changes:
        raise FileExistsError(
            f"study {str(folder)!r} is of another sweep ({'; '.join(changes)}): name "
            "another folder, or only add cells"
        )
    if not change.added:
        return there
    last = max(entry["generation"] for entry in there["cells"])
    extended = there | {
        "sweep": sweep_to_dict(sweep),
        "axes": _axes(sweep),
        "excluded": grid.excluded,
        "illegal": grid.illegal,
        "cells": there["cells"] + _entries(change.added, last + 1),
    }
    write_json(folder / "manifest.json", extended)
    return extended


def _entries(cells: Sequence[Cell], generation: int) -> list[dict[str, Any]]:
    return [cell_to_json(cell) | {"generation": generation} for cell in cells]


def _axes(sweep: Sweep) -> dict[str, list[str]]:
    return {axis: list(points) for axis, points in sweep.axes.items()}
