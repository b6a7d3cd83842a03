"""One study against another: what changed, victim by victim, in cells that are alike.

What a cell is, its configuration says: cells pair if they agree in all that changes
results, but for what sets the two studies apart as wholes. A name of a point, an axis
or a folder pairs nothing.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas

from kljax.defences.arm_options import spell_numbers
from kljax.metrics import Column
from kljax.studies.config import LeakConfig
from kljax.studies.reports.axes import WHO, Axis, arrange, axes_of, input_axis
from kljax.studies.reports.comparisons import (
    adjust_together,
    compare_pools,
    comparisons_table,
)
from kljax.studies.reports.pools import Pool, make_pools
from kljax.studies.reports.tables import Table, at_words
from kljax.studies.reports.values import numbers, values_of
from kljax.studies.store import Study
from kljax.studies.sweeps.cell import cell_from_json, identity

# What says how many there are, and what is measured; each victim's result is the same.
COUNTED = frozenset({"victims", "delta", "risk", "metrics"})
NAMED = 8  # cells without their like that are named one by one


class Against(NamedTuple):
    """A study held against another.

    Attributes:
      other: name of the other study.
      apart: what sets the studies apart as wholes, in words, a sentence each.
      table: paired differences, this study minus the other.
      equal: how many pairs have the very same value, of how many.
      unpaired: cells of either study without their like in the other, and why.
    """

    other: str
    apart: tuple[str, ...]
    table: Table
    equal: tuple[int, int]
    unpaired: tuple[str, ...]


class _Cell(NamedTuple):
    """A cell, and what of its configuration has to be the same in its like."""

    id: str
    name: str
    fields: dict[str, Any]


def compare_studies(
    study: Study,
    other: Study,
    pools: Sequence[Pool],
    value: Column,
    success: Column,
) -> Against:
    """Compares the cells of two studies that are alike, pool by pool of the first.

    Pairs are the same example of the same upload, by its place in the dataset.

    Args:
      study: reported on.
      other: held against it.
      pools: of `study`.
      value: whose mean is compared; `other` has it, too.
      success: called what it is of the study's inputs.

    Raises:
      ValueError: if the studies have other victims, if no cell has its like, if no
        victim is in both, or `other` has not the value.
    """
    name = other.manifest.get("name", other.folder.name)
    if value.name not in values_of(other):
        raise ValueError(f"study {name!r} has no values of {value.name!r}")
    here, there = _cells(study), _cells(other)
    apart = _apart(here, there)
    _check_victims(apart, name)
    left, right = (_by_content(cells, apart) for cells in (here, there))
    like = {left[content].id: right[content].id for content in left if content in right}
    unpaired = [
        *_unlike(left, right, "here", "there"),
        *_unlike(right, left, "there", "here"),
    ]
    if not like:
        raise ValueError(
            f"no cell of this study has its like in {name!r}: "
            f"{'; '.join(_shortened(unpaired))}"
        )
    others = _pools(other)
    comparisons, equal, count = [], 0, 0
    for pool in pools:
        sides = _sides(pool, others, like)
        if sides is None:
            continue
        itself = {cell["id"]: cell["id"] for cell in pool.cells}
        compared = compare_pools(*sides, (itself, itself), value.name)
        if compared is not None:
            equal += _count_equal(*sides, value.name)
            count += len(sides[0].rows)
            names = {"first": f"other: {name}", "second": "this"}
            comparisons.append(compared._replace(**names, point=pool.point))
    if not comparisons:
        raise ValueError(f"no victim was attacked in this study and in {name!r}")
    table = comparisons_table(
        adjust_together(comparisons),
        value,
        success,
        name="against",
        title=f"Against {name}, on the same victims",
        side="study",
    )
    words = [f"{field} is {a} here and {b} there" for field, (a, b) in apart.items()]
    words += _surroundings(study, other)
    return Against(name, tuple(words), table, (equal, count), _shortened(unpaired))


def _cells(study: Study) -> list[_Cell]:
    found = []
    for entry in study.manifest["cells"]:
        fields = identity(cell_from_json(entry).config)
        fields = {k: v for k, v in fields.items() if k not in COUNTED}
        fields["arms"] = [spell_numbers(arm) for arm in entry["config"]["arms"]]
        found.append(_Cell(entry["id"], at_words(entry["point"]), fields))
    return found


def _apart(here: Sequence[_Cell], there: Sequence[_Cell]) -> dict[str, tuple[str, str]]:
    """Finds the fields that each study has one value of, and these differ."""
    names = dict.fromkeys(n for cell in (*here, *there) for n in cell.fields)
    apart = {}
    for name in names:
        values = [{_value(cell, name) for cell in cells} for cells in (here, there)]
        if len(values[0]) == len(values[1]) == 1 and values[0] != values[1]:
            apart[name] = (values[0].pop(), values[1].pop())
    return apart


def _value(cell: _Cell, name: str) -> str:
    """Writes a field of a cell; one that is not listed is at its default."""
    default = _DEFAULTS.get(name)
    return json.dumps(cell.fields.get(name, default), sort_keys=True)


_DEFAULTS = {
    field.name: json.loads(json.dumps(field.default))
    for field in dataclasses.fields(LeakConfig)
    if field.default is not dataclasses.MISSING
}


def _check_victims(apart: Mapping[str, tuple[str, str]], name: str) -> None:
    """Refuses studies whose victims are not the same."""
    who = [field for field in apart if field in WHO]
    if who:
        words = ", ".join(
            f"{f} is {apart[f][0]} here, {apart[f][1]} there" for f in who
        )
        raise ValueError(f"study {name!r} has other victims: {words}")


def _by_content(
    cells: Sequence[_Cell], apart: Mapping[str, Any]
) -> dict[frozenset[tuple[str, str]], _Cell]:
    """Puts cells by all that their like has to have; of two alike the first counts."""
    found: dict[frozenset, _Cell] = {}
    for cell in cells:
        names = cell.fields.keys() - apart.keys()
        content = frozenset((name, _value(cell, name)) for name in names)
        found.setdefault(content, cell)
    return found


def _unlike(
    own: Mapping[frozenset, _Cell],
    others: Mapping[frozenset, _Cell],
    here: str,
    there: str,
) -> list[str]:
    """Says of the cells of one study why they pair with none of the other."""
    words = []
    for content, cell in own.items():
        if content in others or not others:
            continue
        nearest = min(others, key=lambda one: len(one ^ content), default=None)
        nearest_one = others[nearest]
        said = ", ".join(
            f"{n} is {_value(cell, n)} {here}, {_value(nearest_one, n)} {there}"
            for n in sorted({n for n, _ in content ^ nearest})
        )
        words.append(f"{cell.name or 'the only cell'} ({here}): {said}")
    return words


def _pools(study: Study) -> dict[tuple[str, str | None], Pool]:
    """Makes the pools of a study, by each of their cells and by their input."""
    axes: dict[str, Axis] = axes_of(study.manifest)
    axes |= input_axis(study.rows["input"].to_pylist())
    pools = make_pools(study, axes, arrange(axes).pooled)
    return {(cell["id"], pool.input): pool for pool in pools for cell in pool.cells}


def _sides(
    pool: Pool, others: Mapping[tuple[str, str | None], Pool], like: Mapping[str, str]
) -> tuple[Pool, Pool] | None:
    """Takes what pairs, other study first, row by row; its cells have our ids."""
    found = []
    for cell in (cell["id"] for cell in pool.cells):
        theirs = others.get((like.get(cell), pool.input))
        if theirs is not None:
            rows = theirs.rows[theirs.rows["cell"] == like[cell]]
            found.append(rows.assign(cell=cell))
    if not found:
        return None
    sides = [_by_place(rows) for rows in (pandas.concat(found), pool.rows)]
    both = sides[0].index.intersection(sides[1].index)
    if not len(both):
        return None
    first, second = (rows.loc[both].reset_index(drop=True) for rows in sides)
    return pool._replace(rows=first), pool._replace(rows=second)


def _by_place(rows: pandas.DataFrame) -> pandas.DataFrame:
    """Gives rows the index by which they pair: cell, upload, place and example."""
    places = rows[["cell", "upload", "victim", "example"]]
    places = places.astype(object).where(places.notna(), -1)  # of before schema 4
    return rows.set_index(pandas.MultiIndex.from_frame(places))


def _count_equal(first: Pool, second: Pool, name: str) -> int:
    """Counts the pairs whose value is the very same."""
    one, other = (numbers(pool.rows, name) for pool in (first, second))
    return int(np.sum((one == other) | (np.isnan(one) & np.isnan(other))))


def _surroundings(study: Study, other: Study) -> list[str]:
    """Says on what else the two were run: another version, or device."""
    words = []
    versions = [one.manifest.get("versions", {}) for one in (study, other)]
    for name in dict.fromkeys((*versions[0], *versions[1])):
        here, there = (one.get(name, "not known") for one in versions)
        if here != there:
            words.append(f"{name} is {here} here and {there} there")
    devices = [str(one.manifest.get("device", "not known")) for one in (study, other)]
    if devices[0] != devices[1]:
        words.append(f"this study is of {devices[0]}, the other of {devices[1]}")
    return words


def _shortened(words: Sequence[str]) -> tuple[str, ...]:
    left = len(words) - NAMED
    return (*words[:NAMED], *([f"and {left} more"] if left > 0 else []))
