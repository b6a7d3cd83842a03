"""Pools: rows that are averaged, of cells that differ in repetitions alone."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow

from kljax.metrics import Column
from kljax.metrics.kinds import KINDS
from kljax.studies import store
from kljax.studies.reports.axes import Axis, point_of
from kljax.studies.reports.values import values_of
from kljax.studies.store import Study

# Of all kinds of inputs; a study has those of its own.
FLOORS = tuple(dict.fromkeys(name for kind in KINDS.values() for name in kind.floors))

FLOOR = store.FLOOR


class Pool(NamedTuple):
    """The cells at one point of all axes but those of repetitions.

    Attributes:
      point: axis -> label.
      cells: of the manifest, finished or not.
      rows: of attacks, as far as they are finished; one per image.
      floors: name -> rows of that floor, of the same cells and victims as `rows`.
      failed: how many cells failed and are not finished.
      values: what of the rows can be tabled: name -> column.
    """

    point: dict[str, str]
    cells: tuple[dict[str, Any], ...]
    rows: pyarrow.Table
    floors: dict[str, pyarrow.Table]
    failed: int
    values: Mapping[str, Column]

    @property
    def attacked(self) -> int:
        """Counts the victims that are attacked: uploads, of one or several images.

        An upload has a row for each example. Before schema version 4 it had one, with
        the means over its examples, and ``example`` is null there.
        """
        return sum(not example for example in self.rows["example"].to_pylist())

    @property
    def expected(self) -> int:
        """Counts the victims that there will be in the end."""
        return sum(cell["config"]["victims"] for cell in self.cells)

    @property
    def state(self) -> str:
        """Says how far it is: ``finished``, ``partial``, ``failed`` or ``not run``."""
        if self.attacked >= self.expected:
            return "finished"
        if self.failed:
            return "failed"
        return "partial" if len(self.rows) else "not run"


def make_pools(
    study: Study, axes: dict[str, Axis], pooled: Sequence[str]
) -> list[Pool]:
    """Pools the rows of a study, in the order of the axes.

    Args:
      study: as it was read.
      axes: of the study.
      pooled: axes over which is pooled.
    """
    attacked, floors = _places(study)
    values = values_of(study)
    missing = {cell["id"] for cell in store.missing_cells(study)}
    failed = {failure["cell"] for failure in study.failures} & missing
    gathered: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for cell in study.manifest["cells"]:
        point = point_of(cell, axes)
        labels = tuple(point[name] for name in axes if name not in pooled)
        gathered.setdefault(labels, []).append(cell)
    names = [name for name in axes if name not in pooled]
    order = {
        name: {label: n for n, label in enumerate(axes[name].labels)} for name in names
    }
    pools = []
    for labels in sorted(
        gathered,
        key=lambda found: [order[a][b] for a, b in zip(names, found, strict=True)],
    ):
        cells = gathered[labels]
        ids = [cell["id"] for cell in cells]
        pools.append(
            Pool(
                dict(zip(names, labels, strict=True)),
                tuple(cells),
                study.rows.take(_joined(attacked, ids)),
                {
                    name: study.rows.take(places)
                    for name in FLOORS
                    if len(places := _joined(floors.get(name, {}), ids))
                },
                len(failed.intersection(ids)),
                values,
            )
        )
    return pools


def with_several(cells: Sequence[Mapping[str, Any]]) -> set[str]:
    """Finds the cells, by id, whose uploads are of several examples.

    Before schema version 4 their rows are means over these.
    """
    return {
        cell["id"]
        for cell in cells
        # An update's number of examples is settled when it is run.
        if cell["config"].get("examples", 1) > 1
        or cell["config"].get("upload") == "update"
    }


Places = dict[str, list[int]]  # id of a cell -> places of its rows


def _places(study: Study) -> tuple[Places, dict[str, Places]]:
    """Finds the rows of attacks, and those of every floor, by cell.

    A floor of a victim who has not been attacked yet is left out: it would be
    compared with other victims.
    """
    columns = (study.rows[name].to_pylist() for name in ("cell", "arm", "victim"))
    rows = list(zip(*columns, strict=True))
    attacked: Places = {}
    victims = set()
    for place, (cell, arm, victim) in enumerate(rows):
        if not arm.startswith(FLOOR):
            attacked.setdefault(cell, []).append(place)
            victims.add((cell, victim))
    floors: dict[str, Places] = {}
    for place, (cell, arm, victim) in enumerate(rows):
        if arm.startswith(FLOOR) and (cell, victim) in victims:
            of_floor = floors.setdefault(arm.removeprefix(FLOOR), {})
            of_floor.setdefault(cell, []).append(place)
    return attacked, floors


def _joined(places: Places, cells: list[str]) -> np.ndarray:
    return np.array([n for cell in cells for n in places.get(cell, ())], np.int64)
