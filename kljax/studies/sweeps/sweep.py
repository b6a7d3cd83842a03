"""Sweep files: named axes, fixed values and exclusions, in TOML.

    [fixed]                       # fields of kljax.LeakConfig; `arm` for one arm
    data = "digits"

    [axes]                        # a list: one point for each value of a field
    arm = ["none", "keylock/known", "keylock/regress_gates"]
    seed = [0, 1, 2]

    [axes.budget]                 # a table: each point has a name and sets fields
    short = { steps = 100 }
    long = { steps = 1000, restarts = 4 }

    [[exclude]]                   # left out where all of it holds; a list: any of them
    budget = "long"
    arm = ["keylock/known", "none"]

    [options]                     # of the sweep, not of the attack
    reconstructions = true

Axes are nested in the order of the file, the last one fastest. A field is set in one
place only, but for `threat`: the facts of all places are joined, so that one axis may
say what is known of the lock and another what of the norm layers.
"""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from kljax.core.files import DamagedFile, read_text
from kljax.core.registry import nearest
from kljax.defences.arm_options import check_spelled_once
from kljax.studies.sweeps.fields import (
    FIELDS,
    check_field,
    check_size,
    check_value,
    in_floats,
    label,
)

SECTIONS = ("fixed", "axes", "exclude", "options")
AXIS = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")  # it becomes part of a column's name
# The field that several places may set: its facts are joined.
JOINED = "threat"


class SweepOptions(NamedTuple):
    """What a sweep keeps.

    Attributes:
      reconstructions: whether the reconstructed images are kept beside the scores.
    """

    reconstructions: bool = False


class Sweep(NamedTuple):
    """A sweep file, read.

    Attributes:
      fixed: field -> value, for all cells.
      axes: axis -> name of a point -> the fields that it sets.
      exclude: each axis or field -> the names of the points, or of the values, that it
        is left out at; all must hold.
      options: of the sweep.
    """

    fixed: dict[str, Any]
    axes: dict[str, dict[str, dict[str, Any]]]
    exclude: tuple[dict[str, tuple[str, ...]], ...]
    options: SweepOptions


def read_sweep(path: str | Path) -> Sweep:
    """Reads a sweep file.

    Raises:
      FileNotFoundError: if it is not there.
      ValueError: if it is no TOML in UTF-8 (a byte-order mark is no matter), and as
        `parse_sweep`.
    """
    try:
        content = tomllib.loads(read_text(Path(path)))
    except DamagedFile as error:
        raise ValueError(
            f"{path} is no TOML: at {error.place} it is not UTF-8; {error.remedy}"
        ) from error
    # Numbers and nestings without end, too.
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no TOML: {error}") from error
    return parse_sweep(content)


def parse_sweep(content: Mapping[str, Any]) -> Sweep:
    """Reads a sweep from the tables of its file.

    Fields and their types are checked here; whether the names that they hold exist is
    checked by `kljax.studies.sweeps.expand`, which knows what belongs together.

    Raises:
      ValueError: for an unknown section, field or option (with the nearest known one),
        a value of the wrong type, an axis without points or with one point twice, a
        field that is set in two places, and snapshots where no reconstruction is kept.
    """
    for name in content:
        if name not in SECTIONS:
            raise ValueError(
                f"[{name}]: no such section{nearest(name, SECTIONS)}; known: "
                f"{', '.join(SECTIONS)}"
            )
    fixed = _fields("[fixed]", _table("[fixed]", content.get("fixed", {})))
    axes = {
        name: _axis(name, points)
        for name, points in _table("[axes]", content.get("axes", {})).items()
    }
    _check_set_once(fixed, axes)
    exclude = content.get("exclude", ())
    if not isinstance(exclude, (list, tuple)):
        raise ValueError("[exclude]: write [[exclude]], there may be several")
    options = _options(_table("[options]", content.get("options", {})))
    _check_kept(fixed, axes, options)
    return Sweep(
        fixed,
        axes,
        tuple(
            _conditions(number, conditions, axes)
            for number, conditions in enumerate(exclude, 1)
        ),
        options,
    )


def sweep_to_dict(sweep: Sweep) -> dict[str, Any]:
    """Writes a sweep as tables that JSON can hold; `parse_sweep` reads them again."""
    return {
        "fixed": dict(sweep.fixed),
        "axes": {axis: dict(points) for axis, points in sweep.axes.items()},
        "exclude": [dict(conditions) for conditions in sweep.exclude],
        "options": sweep.options._asdict(),
    }


def places(sweep: Sweep, point: Mapping[str, str], name: str) -> str:
    """Says where in the file a field of the cell at `point` is set."""
    found = [f"[fixed] {name}"] if name in sweep.fixed else []
    for axis, at in point.items():
        points = sweep.axes[axis]
        if name in points[at]:
            plain = all(fields.keys() == {axis} for fields in points.values())
            found.append(f"[axes] {axis}" if plain else f"[axes.{axis}.{at}] {name}")
    return " and ".join(found)


def _table(place: str, content: Any) -> Mapping[str, Any]:
    if not isinstance(content, Mapping):
        raise ValueError(f"{place}: expected a table, got {content!r}")
    return content


def _fields(place: str, table: Mapping[str, Any]) -> dict[str, Any]:
    for name in table:
        check_field(place, name)
    return {name: check_value(place, name, value) for name, value in table.items()}


def _axis(axis: str, points: Any) -> dict[str, dict[str, Any]]:
    if isinstance(points, (list, tuple)):  # of the values of one field
        check_field("[axes]", axis)
        values = [check_value("[axes]", axis, value) for value in points]
        labels = [label(value) for value in values]
        twice = sorted({name for name in labels if labels.count(name) > 1})
        if twice:
            raise ValueError(f"[axes] {axis}: {', '.join(twice)} is there twice")
        if axis == "arm":
            _check_spelled_once(labels)
        found = {
            name: {axis: value} for name, value in zip(labels, values, strict=True)
        }
    elif isinstance(points, Mapping):
        place = f"[axes.{axis}]"
        if not AXIS.fullmatch(axis):
            raise ValueError(
                f"{place}: the name of an axis has letters, digits, - and _ only"
            )
        found = {}
        for name, fields in points.items():
            if not name.strip():
                raise ValueError(f"{place}: a point without a name")
            if not isinstance(fields, Mapping):
                raise ValueError(
                    f"{place} {name}: a point sets fields, such as "
                    f"{{ steps = 100 }}, got {fields!r}"
                )
            found[name] = _fields(f"[axes.{axis}.{name}]", fields)
    else:
        raise ValueError(
            f"[axes] {axis}: expected a list of values, or a table of named points, "
            f"got {points!r}; one value for all cells belongs into [fixed]"
        )
    if not found:
        raise ValueError(f"[axes] {axis}: an axis needs at least one point")
    return found


def _check_spelled_once(arms: list[str]) -> None:
    try:
        check_spelled_once(arms)
    except ValueError as error:
        raise ValueError(f"[axes] arm: {error}") from error


def _check_set_once(fixed: dict[str, Any], axes: dict[str, dict[str, dict]]) -> None:
    seen = dict.fromkeys(fixed, "[fixed]")
    for axis, points in axes.items():
        names = dict.fromkeys(name for fields in points.values() for name in fields)
        for name in names:
            if name in seen and name != JOINED:
                raise ValueError(
                    f"[axes] {axis}: it sets {name}, and so does {seen[name]}"
                )
            seen[name] = f"axis {axis}"


def _check_kept(
    fixed: dict[str, Any], axes: dict[str, dict[str, dict]], options: SweepOptions
) -> None:
    """Refuses snapshots of reconstructions that are not kept."""
    points = (fields for axis in axes.values() for fields in axis.values())
    asked = any(fields.get("snapshots") for fields in (fixed, *points))
    if asked and not options.reconstructions:
        raise ValueError(
            "snapshots are kept beside reconstructions: write reconstructions = true "
            "under [options], or leave snapshots out"
        )


def _conditions(
    number: int, table: Any, axes: Mapping[str, Any]
) -> dict[str, tuple[str, ...]]:
    place = f"[[exclude]] {number}"
    if not _table(place, table):
        raise ValueError(f"{place}: it names no condition, and would leave out all")
    conditions = {}
    for name, wanted in table.items():
        if name not in axes and name not in FIELDS:
            names = (*axes, *FIELDS)
            raise ValueError(
                f"{place}, {name}: no such axis or field{nearest(name, names)}"
            )
        several = wanted if isinstance(wanted, (list, tuple)) else [wanted]
        if not several:
            raise ValueError(f"{place}, {name}: an empty list, which nothing is in")
        conditions[name] = tuple(_wanted(place, name, value) for value in several)
    return conditions


def _wanted(place: str, name: str, value: Any) -> str:
    listed = isinstance(value, list) and all(isinstance(v, str) for v in value)
    if not listed and not isinstance(value, (str, int, float)):
        raise ValueError(f"{place}, {name}: expected a value, got {value!r}")
    check_size(f"{place}, {name}", value)
    return label(tuple(value) if listed else in_floats(name, value))


def _options(table: Mapping[str, Any]) -> SweepOptions:
    for name, value in table.items():
        if name not in SweepOptions._fields:
            known = SweepOptions._fields
            raise ValueError(
                f"[options] {name}: no such option{nearest(name, known)}; known: "
                f"{', '.join(known)}"
            )
        if not isinstance(value, bool):
            raise ValueError(f"[options] {name}: expected true or false, got {value!r}")
    return SweepOptions(**table)
