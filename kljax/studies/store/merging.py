"""Merging: two studies become a third one."""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kljax.core.checks import check_text
from kljax.core.files import write_json
from kljax.metrics import COLUMNS
from kljax.studies.store.manifest import cells_of, plan, read_manifest
from kljax.studies.store.parts import write_part
from kljax.studies.store.reading import FLOOR, Study, read
from kljax.studies.sweeps import Cell, cell_to_json, merge
from kljax.studies.sweeps.cell import NO_RESULTS
from kljax.studies.sweeps.fields import FIELDS


def merge_studies(first: Path, second: Path, out: Path) -> None:
    """Joins two studies of the same axes; neither is changed.

    A cell of both is taken from the first, unless only the second has finished it.
    Rows keep what they say of device and precision. Cells that are finished in neither
    are missing in the result: finish them before.

    Args:
      first, second: folders of `kljax sweep`.
      out: folder to write; it appears whole or not at all.

    Raises:
      FileExistsError: if `out` exists.
      FileNotFoundError: if one of the two is no study.
      ValueError: if they contradict each other (`kljax.studies.sweeps.merge`), or
        differ in what is an axis of neither.
    """
    check_text("out", str(out))
    if out.exists():
        raise FileExistsError(f"{str(out)!r} exists: name another folder")
    manifests = [read_manifest(folder) for folder in (first, second)]
    both = [*map(cells_of, manifests, (first, second))]
    cells = merge(*both)
    sweep = _joined_sweep(manifests, both)
    studies = [read(folder) for folder in (first, second)]
    rows = [_rows_by_cell(study) for study in studies]
    own = studies[1].columns | studies[0].columns
    own = {name: column for name, column in own.items() if name not in COLUMNS}
    manifest = _joined(out.name, manifests, sweep, cells)
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".kljax-", dir=out.parent))
    try:
        write_json(aside / "manifest.json", manifest)
        source = {cell.id: _better(cell, rows) for cell in cells}
        for group in plan(manifest):
            for chunk in group.chunks:
                found = {}
                for piece in chunk.pieces:
                    where = source[piece.cell.id]
                    if where is not None:
                        found[piece.name] = _of(rows[where][piece.cell.id], piece)
                if found:
                    write_part(aside, chunk, manifest["axes"], found, own.values())
        for cell in cells:
            _copy_rest(cell, source[cell.id], studies, aside)
        aside.chmod(0o755)  # mkdtemp makes it private
        aside.rename(out)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _joined_sweep(
    manifests: Sequence[dict[str, Any]], cells: Sequence[Sequence[Cell]]
) -> dict[str, Any]:
    """Makes the sweep that has all cells of both; perhaps more, never fewer.

    Raises:
      ValueError: for what differs and is on no axis: rows at two points would differ
        in it, too, and nobody would see it.
    """
    first, second = (manifest["sweep"] for manifest in manifests)
    axes = {axis: dict(points) for axis, points in first["axes"].items()}
    for axis, points in second["axes"].items():
        for label, fields in points.items():
            there = axes[axis].setdefault(label, fields)
            if _results(there) != _results(fields):
                raise ValueError(
                    f"axis {axis}: point {label} sets {there} in the first study and "
                    f"{fields} in the second"
                )
    swept = {name for points in axes.values() for at in points.values() for name in at}
    for name in FIELDS:
        if name in NO_RESULTS:
            continue
        if name in swept:  # and for all cells of one study, besides?
            one, other = (sweep["fixed"].get(name) for sweep in (first, second))
        else:
            field = "arms" if name == "arm" else name
            one, other = (getattr(some[0].config, field) for some in cells)
        if one != other:
            raise ValueError(
                f"{name} is {one!r} in the first study and {other!r} in the second: "
                "what differs between two studies must be an axis of both"
            )
    options = (first["options"], second["options"])
    return {
        "fixed": first["fixed"],
        "axes": axes,
        # Those of one study might leave out cells of the other.
        "exclude": first["exclude"] if first["exclude"] == second["exclude"] else [],
        "options": {n: kept and options[1].get(n) for n, kept in options[0].items()},
    }


def _results(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: at for name, at in fields.items() if name not in NO_RESULTS}


def _joined(
    name: str,
    manifests: Sequence[dict[str, Any]],
    sweep: dict[str, Any],
    cells: Sequence[Cell],
) -> dict[str, Any]:
    return manifests[0] | {
        "name": name,
        "merged": [manifest["name"] for manifest in manifests],
        "sweep": sweep,
        "axes": {axis: list(points) for axis, points in sweep["axes"].items()},
        "excluded": 0,
        "illegal": 0,
        "cells": [cell_to_json(cell) | {"generation": 0} for cell in cells],
    }


def _rows_by_cell(study: Study) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Sorts rows: cell -> arm or floor -> in the order of the victims."""
    rows: dict[str, dict[str, list]] = {}
    for row in study.rows.to_pylist():
        rows.setdefault(row["cell"], {}).setdefault(row["arm"], []).append(row)
    return rows


def _better(cell: Cell, rows: Sequence[dict]) -> int | None:
    """Finds the first study that has all rows of a cell."""
    for number, of_cell in enumerate(rows):
        arms = of_cell.get(cell.id, {})
        finished = [len(set(_uploads(r))) for a, r in arms.items() if _attacked(a)]
        if finished == [cell.config.victims]:
            return number
    return None


def _of(arms: dict[str, list[dict[str, Any]]], piece) -> list[dict[str, Any]]:
    (own,) = (rows for arm, rows in arms.items() if _attacked(arm))
    wanted = range(piece.first, piece.end)
    uploads = zip(own, _uploads(own), strict=True)
    victims = {row["victim"] for row, upload in uploads if upload in wanted}
    return [row for rows in arms.values() for row in rows if row["victim"] in victims]


def _attacked(arm: str) -> bool:
    return not arm.startswith(FLOOR)


def _uploads(rows: list[dict[str, Any]]) -> list[int]:
    """Counts uploads, in the order of the rows of one arm: each begins with example 0.

    Before schema version 4 each row is an upload. Inputs of one example follow each
    other, and have its victim in common.
    """
    victims = [None, *(row["victim"] for row in rows)]
    pairs = zip(rows, victims, strict=False)
    begins = [not row["example"] and row["victim"] != last for row, last in pairs]
    return (np.cumsum(np.array(begins, int)) - 1).tolist()


def _copy_rest(
    cell: Cell, where: int | None, studies: Sequence[Study], aside: Path
) -> None:
    if where is None:
        for failure in (f for study in studies for f in study.failures):
            if failure["cell"] == cell.id:
                (aside / "failures").mkdir(exist_ok=True)
                write_json(aside / "failures" / f"{cell.id}.json", failure)
        return
    images = studies[where].folder / "reconstructions" / f"{cell.id}.npz"
    if images.exists():
        (aside / "reconstructions").mkdir(exist_ok=True)
        shutil.copy(images, aside / "reconstructions")
