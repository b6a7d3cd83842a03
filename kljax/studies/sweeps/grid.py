"""The grid: all cells of a sweep, without what it excludes and what cannot be."""

import itertools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from kljax.core.registry import nearest
from kljax.studies.config import LeakConfig
from kljax.studies.sweeps.cell import Cell, make_cell, name_of
from kljax.studies.sweeps.fields import DEFAULTS, label
from kljax.studies.sweeps.legality import is_legal
from kljax.studies.sweeps.sweep import JOINED, Sweep, places

# Of a hundred thousand cells the manifest is a file of a hundred megabytes.
MOST = 100_000


class Grid(NamedTuple):
    """A sweep, written out.

    Attributes:
      cells: in the order of the axes, the last one fastest.
      excluded: how many cells the exclusions of the file left out.
      illegal: how many more were left out because their attacker knows too little for
        its strategy (`kljax.threat.IllegalThreat`).
    """

    cells: tuple[Cell, ...]
    excluded: int
    illegal: int


def expand(sweep: Sweep) -> Grid:
    """Writes out all cells of a sweep. Nothing is loaded, compiled or run.

    Guarantees: ``len(cells) + excluded + illegal`` is the product of the numbers of
    points of the axes; no two cells have the same results by configuration.

    Raises:
      ValueError: for a name that does not exist (with the nearest that does) or a
        value that cannot be, with the section of the file it is in; a cell without an
        arm; an exclusion at a point that does not exist, or that leaves out nothing;
        two cells that are the same; no cell left; and more than `MOST` points.
    """
    points = math.prod(len(labels) for labels in sweep.axes.values())
    if points > MOST:
        raise ValueError(
            f"[axes]: they have {points:,} points, and a sweep at most {MOST:,}: leave "
            "points out, or make several sweeps"
        )
    cells: dict[str, Cell] = {}
    excluded = illegal = 0
    exclusions = [_Exclusion(*item) for item in enumerate(sweep.exclude, 1)]
    for labels in itertools.product(*sweep.axes.values()):
        point = dict(zip(sweep.axes, labels, strict=True))
        fields = _fields(sweep, point)
        # Every exclusion looks at every cell, to know whether it is of any use.
        if any([exclusion.holds(point, fields) for exclusion in exclusions]):
            excluded += 1
            continue
        config, legal = _checked(sweep, point, fields)
        if not legal:
            illegal += 1
            continue
        cell = make_cell(point, config)
        if cell.id in cells:
            raise ValueError(
                f"{name_of(cells[cell.id].point)} and {name_of(point)} are the same: "
                f"they differ in nothing that changes results"
            )
        cells[cell.id] = cell
    for exclusion in exclusions:
        exclusion.check_used()
    if not cells:
        raise ValueError(
            f"no cell is left: {excluded} are excluded, {illegal} have an attacker who "
            "knows too little for its strategy"
        )
    return Grid(tuple(cells.values()), excluded, illegal)


def _fields(sweep: Sweep, point: Mapping[str, str]) -> dict[str, Any]:
    """Joins the fields of a cell."""
    fields = dict(sweep.fixed)
    for axis, at in point.items():
        for name, value in sweep.axes[axis][at].items():
            fields[name] = fields.get(name, ()) + value if name == JOINED else value
    return fields


class _Exclusion:
    """One exclusion of the file, which remembers what it has seen."""

    def __init__(self, number: int, conditions: Mapping[str, tuple[str, ...]]):
        self._place = f"[[exclude]] {number}"
        self._conditions = conditions
        self._seen: dict[str, dict[str, None]] = {name: {} for name in conditions}
        self._used = False

    def holds(self, point: Mapping[str, str], fields: Mapping[str, Any]) -> bool:
        """Tells whether a cell is left out."""
        labels = {name: _label_at(name, point, fields) for name in self._conditions}
        for name, at in labels.items():
            self._seen[name][at] = None
        left_out = all(labels[n] in wanted for n, wanted in self._conditions.items())
        self._used |= left_out
        return left_out

    def check_used(self) -> None:
        """Refuses what no cell has met, after all have been seen."""
        for name, wanted in self._conditions.items():
            for at in wanted:
                if at not in self._seen[name]:
                    seen = self._seen[name]
                    raise ValueError(
                        f"{self._place}, {name}: no cell is at {at!r}"
                        f"{nearest(at, seen)}; there are {', '.join(seen)}"
                    )
        if not self._used:
            raise ValueError(f"{self._place}: it leaves out no cell")


def _label_at(name: str, point: Mapping[str, str], fields: Mapping[str, Any]) -> str:
    if name in point:
        return point[name]
    return label(fields[name] if name in fields else getattr(DEFAULTS, name, None))


def _checked(
    sweep: Sweep, point: Mapping[str, str], fields: Mapping[str, Any]
) -> tuple[LeakConfig, bool]:
    """Makes a cell's configuration, and judges it.

    Raises:
      ValueError: with the section to blame.
    """
    if "arm" not in fields:
        raise ValueError(
            f"{name_of(point)}: no arm; name one in [fixed], or several in [axes]"
        )
    try:
        return _judged(fields)
    except ValueError as error:
        name = _blamed(fields, error)
        where = places(sweep, point, name) if name else name_of(point)
        raise ValueError(f"{where}: {error}") from error


def _judged(fields: Mapping[str, Any]) -> tuple[LeakConfig, bool]:
    others = {name: value for name, value in fields.items() if name != "arm"}
    config = LeakConfig(arms=(fields["arm"],), layout=DEFAULTS.layout, **others)
    return config, is_legal(config)


def _blamed(fields: Mapping[str, Any], error: ValueError) -> str | None:
    """Finds the field without which this error would not be."""
    for name in fields:
        without = {other: value for other, value in fields.items() if other != name}
        try:
            _judged({"arm": "none"} | without)
        except ValueError as other:
            if str(other) == str(error):
                continue
        return name
    return None
