"""Comparison of sweeps: what a changed file changes, and whether two go together."""

import collections
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

from kljax.studies.sweeps.cell import Cell, identity, name_of
from kljax.studies.sweeps.fields import DEFAULTS

NAMED = 3  # cells that a message names one by one


class Difference(NamedTuple):
    """What is different between an old sweep and a new one.

    Attributes:
      added: cells that the old one has not.
      changes: what else is different, in words; nothing of it can be made good by
        running more cells.
    """

    added: tuple[Cell, ...]
    changes: tuple[str, ...]

    @property
    def kind(self) -> Literal["same", "adds", "changed"]:
        """Says what became of the sweep; the order of cells is no matter."""
        if self.changes:
            return "changed"
        return "adds" if self.added else "same"


def difference(old: Iterable[Cell], new: Iterable[Cell]) -> Difference:
    """Compares the cells of a study with those of a sweep file read again.

    A cell that is gone, has other settings at its point, or stands at another point is
    a change. So is a new axis: rows that are finished do not say where they stand on
    it.

    Args:
      old: the study's, see `kljax.studies.sweeps.cell_from_json`.
      new: of the file, see `kljax.studies.sweeps.expand`.
    """
    before = {cell.id: cell for cell in old}
    after = {cell.id: cell for cell in new}
    changes = [
        *(f"axis {axis} is gone" for axis in _missing(before, after)),
        *(f"axis {axis} is new" for axis in _missing(after, before)),
    ]
    same_axes = not changes
    at_point = {_place(cell): cell for cell in after.values()}
    fields: collections.Counter[str] = collections.Counter()
    gone, moved, twins = [], [], set()
    for cell in before.values():
        twin = after.get(cell.id)
        if twin is None:
            twin = at_point.get(_place(cell))
            if twin is None or twin.id in before:
                gone.append(name_of(cell.point))
                continue
            twins.add(twin.id)
        elif same_axes and twin.point != cell.point:
            moved.append(f"{name_of(cell.point)} is now {name_of(twin.point)}")
        fields.update(_differences(cell, twin))
    changes += [f"{text} in {_cells(count)}" for text, count in fields.items()]
    changes += _shortened(moved, "moved")
    changes += _shortened([f"{name} is gone" for name in gone], "gone")
    added = [c for c in after.values() if c.id not in before and c.id not in twins]
    return Difference(tuple(added), tuple(changes))


def merge(first: Iterable[Cell], second: Iterable[Cell]) -> tuple[Cell, ...]:
    """Joins the cells of two studies: those of the first, then what the second adds.

    Raises:
      ValueError: if they contradict each other: other axes, two cells of one id that
        are not the same or stand at two points, or one point with two cells. Whatever
        differs between two studies must be an axis of both.
    """
    joined = {cell.id: cell for cell in first}
    others = {cell.id: cell for cell in second}
    if joined and others:
        lacking = (("first", others, joined), ("second", joined, others))
        for name, have, lack in lacking:
            axes = _missing(have, lack)
            if axes:
                raise ValueError(
                    f"the {name} study has no axis {', '.join(axes)}: what differs "
                    "between two studies must be an axis of both"
                )
    at_point = {_place(cell): cell for cell in joined.values()}
    for cell in others.values():
        twin = joined.get(cell.id)
        if twin is not None and twin.point != cell.point:
            raise ValueError(
                f"{name_of(twin.point)} of the first study is {name_of(cell.point)} of "
                "the second"
            )
        twin = at_point.get(_place(cell))
        if twin is not None:
            differences = _differences(twin, cell)
            if differences:
                raise ValueError(
                    f"{name_of(cell.point)} is not the same in both studies: "
                    f"{', '.join(differences)}"
                )
        joined.setdefault(cell.id, cell)
    return tuple(joined.values())


def _place(cell: Cell) -> frozenset[tuple[str, str]]:
    return frozenset(cell.point.items())


def _missing(have: Mapping[str, Cell], lack: Mapping[str, Cell]) -> list[str]:
    """Lists the axes that the cells of one study have and those of the other lack."""

    def axes(cells: Mapping[str, Cell]) -> dict[str, None]:
        return dict.fromkeys(axis for cell in cells.values() for axis in cell.point)

    return [axis for axis in axes(have) if axis not in axes(lack)]


def _differences(one: Cell, other: Cell) -> list[str]:
    """Names what changes results and is not the same in both."""

    def value(fields: Mapping[str, Any], name: str) -> Any:
        return fields[name] if name in fields else getattr(DEFAULTS, name)

    def words(cell: Cell, fields: Mapping[str, Any], name: str) -> str:
        return repr(fields.get(name, getattr(cell.config, name)))

    left, right = identity(one.config), identity(other.config)
    differences = [
        f"{name} {words(one, left, name)} -> {words(other, right, name)}"
        for name in dict.fromkeys((*left, *right))
        if value(left, name) != value(right, name)
    ]
    if not differences and one.id != other.id:
        differences.append("ids are made differently")
    return differences


def _cells(count: int) -> str:
    return "1 cell" if count == 1 else f"{count} cells"


def _shortened(lines: list[str], what: str) -> list[str]:
    if len(lines) <= NAMED:
        return lines
    return [*lines[:NAMED], f"and {len(lines) - NAMED} more {what}"]
