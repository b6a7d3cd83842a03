"""Merging: two studies become a third one."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kljax.files import write_json
from kljax.studies.failures import read_failures
from kljax.studies.manifest import cells_of, plan, read_manifest
from kljax.studies.parts import write_part
from kljax.studies.reading import FLOOR, Study, read
from kljax.sweeps import Cell, cell_to_json, merge


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
      ValueError: if they contradict each other (`kljax.sweeps.merge`).
    """
    if out.exists():
        raise FileExistsError(f"{str(out)!r} exists: name another folder")
    manifests = [read_manifest(folder) for folder in (first, second)]
    cells = merge(*(cells_of(manifest) for manifest in manifests))
    studies = [read(folder) for folder in (first, second)]
    rows = [_rows_by_cell(study) for study in studies]
    manifest = _joined(out.name, manifests, cells)
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        write_json(aside / "manifest.json", manifest)
        source = {cell.id: _better(cell, rows) for cell in cells}
        for group in plan(manifest):
            for chunk in group.chunks:
                found, pieces = [], []
                for piece in chunk.pieces:
                    where = source[piece.cell.id]
                    if where is None:
                        continue
                    mine = rows[where][piece.cell.id]
                    found += [(piece.cell, r) for r in _of(mine, piece)]
                    pieces.append(piece.name)
                if found:
                    axes = manifest["axes"]
                    write_part(aside, chunk.name, axes, found, pieces)
        for cell in cells:
            _copy_rest(cell, source[cell.id], studies, aside)
        aside.chmod(0o755)  # mkdtemp makes it private
        aside.rename(out)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _joined(
    name: str, manifests: Sequence[dict[str, Any]], cells: Sequence[Cell]
) -> dict[str, Any]:
    first, second = manifests
    axes = {
        axis: list(dict.fromkeys([*labels, *second["axes"][axis]]))
        for axis, labels in first["axes"].items()
    }
    return first | {
        "name": name,
        "merged": [manifest["name"] for manifest in manifests],
        "axes": axes,
        "excluded": 0,
        "illegal": 0,
        "cells": [cell_to_json(cell) | {"generation": 0} for cell in cells],
    }


def _rows_by_cell(study: Study) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Sorts rows: cell -> arm or floor -> in the order of the victims."""
    found: dict[str, dict[str, list]] = {}
    for row in study.rows.to_pylist():
        found.setdefault(row["cell"], {}).setdefault(row["arm"], []).append(row)
    return found


def _better(cell: Cell, rows: Sequence[dict]) -> int | None:
    """Finds the first study that has all rows of a cell."""
    for number, of_cell in enumerate(rows):
        arms = of_cell.get(cell.id, {})
        finished = [len(r) for arm, r in arms.items() if not arm.startswith(FLOOR)]
        if finished == [cell.config.victims]:
            return number
    return None


def _of(arms: dict[str, list[dict[str, Any]]], piece) -> list[dict[str, Any]]:
    (own,) = (rows for arm, rows in arms.items() if not arm.startswith(FLOOR))
    victims = {row["victim"] for row in own[piece.first : piece.end]}
    return [row for rows in arms.values() for row in rows if row["victim"] in victims]


def _copy_rest(
    cell: Cell, where: int | None, studies: Sequence[Study], aside: Path
) -> None:
    if where is None:
        failures = [f for s in studies for f in read_failures(s.folder)]
        for failure in failures:
            if failure["cell"] == cell.id:
                (aside / "failures").mkdir(exist_ok=True)
                write_json(aside / "failures" / f"{cell.id}.json", failure)
        return
    kept = studies[where].folder / "reconstructions" / f"{cell.id}.npz"
    if kept.exists():
        (aside / "reconstructions").mkdir(exist_ok=True)
        shutil.copy(kept, aside / "reconstructions")
