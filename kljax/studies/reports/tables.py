"""Tables: of all points of a study, and of a value by rows and columns."""

import csv
import io
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from kljax import metrics
from kljax.metrics import COLUMNS, Column
from kljax.studies.reports.axes import Arrangement, Axis
from kljax.studies.reports.estimates import Estimate, estimate
from kljax.studies.reports.kinds import find_words
from kljax.studies.reports.pools import Pool
from kljax.studies.reports.relative import HEADING as RDLV
from kljax.studies.reports.relative import relative_leakage, relative_words
from kljax.studies.reports.values import known, numbers
from kljax.studies.reports.verdicts import Outcomes, count_outcomes, verdict


class Entry(NamedTuple):
    """One place of a table.

    Attributes:
      text: what is read; several lines, the first one matters most.
      number: what it is sorted by; None for text.
      drawn: name of the drawing beside it in the page, and what it is of.
      link: address of what the page links it to; None for nothing.
    """

    text: str
    number: float | None = None
    drawn: tuple[str, Any] | None = None
    link: str | None = None


class Table(NamedTuple):
    """A table, for people (`header`, `lines`) and for programs (`records`).

    Attributes:
      name: of its file, without ending.
      title: what it shows.
      header: names of the columns.
      lines: as many entries each.
      records: rows of the CSV file, all with the same columns.
    """

    name: str
    title: str
    header: tuple[str, ...]
    lines: list[tuple[Entry, ...]]
    records: list[dict[str, Any]]


class Line(NamedTuple):
    """A pool with everything that is said of it."""

    pool: Pool
    value: Estimate
    success: Estimate
    outcomes: Outcomes
    reads: str
    means: dict[str, Estimate]
    relative: metrics.Interval


def make_line(pool: Pool, value: str, undefended: Pool | None = None) -> Line:
    """Estimates everything that tables say of a pool.

    Args:
      pool: the rows.
      value: that is asked for.
      undefended: see `kljax.studies.reports.verdicts.verdict`.
    """
    names = {pool.primary, "success", value}
    estimates = {name: estimate(pool, name) for name in names}
    return Line(
        pool,
        estimates[value],
        estimates["success"],
        count_outcomes(pool),
        verdict(
            pool,
            estimates[pool.primary],
            estimates["success"],
            undefended=undefended,
        ),
        {
            name: estimates.get(name) or estimate(pool, name)
            for name, column in pool.values.items()
            if column.shown_in("report")
            if name != value and math.isfinite(_any(pool, name))
        },
        relative_leakage(pool),
    )


def points_table(lines: Sequence[Line], value: Column) -> Table:
    """Tables every point of the study, whatever its rows and columns."""
    axes = tuple(lines[0].pool.point) if lines else ()
    also = {
        name: column
        for line in lines
        for name, column in line.pool.values.items()
        if any(name in other.means for other in lines)
    }
    relative = any(math.isfinite(line.relative.estimate) for line in lines)
    success = lines[0].success.value if lines else COLUMNS["success"]
    asked = () if value.name == "success" else (f"{value.heading} [95 %]",)
    header = (
        *axes,
        "victims",
        f"{success.heading} [95 %]",
        *asked,
        " / ".join(Outcomes._fields),
        "reads as",
        *(column.heading for column in also.values()),
        *([RDLV] if relative else []),
    )
    return Table(
        "points",
        f"Every point, over {_pooled_words(lines)}",
        header,
        [_entries(line, value, also, relative) for line in lines],
        [_record(line, value, also, relative) for line in lines],
    )


def _entries(
    line: Line, value: Column, also: dict[str, Column], relative: bool
) -> tuple[Entry, ...]:
    pool, success = line.pool, line.success
    counts = line.outcomes.text() if len(pool.rows) else "-"
    return (
        *(Entry(label) for label in pool.point.values()),
        Entry(victims_text(pool), pool.attacked),
        Entry(_with_floor(success), known(success.mean), ("rate", success)),
        *([] if value.name == "success" else [_asked(line.value)]),
        Entry(counts, line.outcomes.recovered, ("outcomes", line.outcomes)),
        Entry(line.reads),
        *(
            Entry(column.written(line.means[name].mean), line.means[name].mean)
            if name in line.means
            else Entry("-")
            for name, column in also.items()
        ),
        *(
            [Entry(relative_words(line.relative), known(line.relative.estimate))]
            if relative
            else []
        ),
    )


def _asked(estimated: Estimate) -> Entry:
    return Entry(_with_floor(estimated), known(estimated.mean))


def _with_floor(estimated: Estimate) -> str:
    """Writes an estimate, its floor and its spread, a line each."""
    texts = [estimated.text()]
    if estimated.floor:
        texts.append(f"floor {estimated.floor_text()}")
    if math.isfinite(estimated.spread):
        texts.append(estimated.spread_text())
    if estimated.left_out and estimated.n:
        texts.append(f"{estimated.left_out} left out")
    return "\n".join(texts)


def victims_text(pool: Pool) -> str:
    """Writes how many victims there are, of how many to come, and their images."""
    have = pool.attacked
    text = str(have)
    if pool.state != "finished":
        text = f"{have} of {pool.expected}, {pool.state}"
    images = len(pool.rows)
    return text if images == have else f"{text}\n{images} {find_words(pool.kind).noun}s"


def _record(
    line: Line, value: Column, also: dict[str, Column], relative: bool
) -> dict[str, Any]:
    pool = line.pool
    record: dict[str, Any] = dict(pool.point)
    record |= {
        "state": pool.state,
        "cells": len(pool.cells),
        "victims": pool.attacked,
        "victims_expected": pool.expected,
        "images": len(pool.rows),
        **_columns(line.success),
    }
    if value.name != "success":
        record |= _columns(line.value)
    record |= line.outcomes._asdict()
    for name in also:
        estimated = line.means.get(name)
        record[f"{name}_mean"] = None if estimated is None else known(estimated.mean)
    if relative:
        record |= {
            "rdlv": known(line.relative.estimate),
            "rdlv_low": known(line.relative.low),
            "rdlv_high": known(line.relative.high),
        }
    return record | {"reads_as": line.reads}


def _columns(estimated: Estimate) -> dict[str, Any]:
    name, floor = estimated.value.name, estimated.floor
    excess = floor.excess if floor else None
    return {
        f"{name}_mean": known(estimated.mean),
        f"{name}_low": known(estimated.interval.low),
        f"{name}_high": known(estimated.interval.high),
        f"{name}_interval": estimated.interval.method if estimated.n else None,
        f"{name}_groups": estimated.interval.groups,
        f"{name}_n": estimated.n,
        f"{name}_left_out": estimated.left_out,
        f"{name}_deviation": known(estimated.deviation),
        f"{name}_spread": known(estimated.spread),
        f"{name}_repetitions": estimated.repetitions,
        f"{name}_floor": floor.name if floor else None,
        f"{name}_floor_mean": floor.mean if floor else None,
        f"{name}_excess": known(excess.estimate) if excess else None,
        f"{name}_excess_low": known(excess.low) if excess else None,
        f"{name}_excess_high": known(excess.high) if excess else None,
    }


def pivot_tables(
    lines: Sequence[Line],
    axes: dict[str, Axis],
    arrangement: Arrangement,
    value: Column,
) -> list[Table]:
    """Tables a value by the chosen rows and columns, one table per slice."""
    sliced: dict[tuple[str, ...], list[Line]] = {}
    for line in lines:
        at = tuple(line.pool.point[axis] for axis in arrangement.slices)
        sliced.setdefault(at, []).append(line)
    tables = []
    for number, (at, members) in enumerate(sliced.items(), 1):
        where = at_words(dict(zip(arrangement.slices, at, strict=True)))
        title = f"{value.heading} by {' and '.join(_shown(arrangement))}"
        tables.append(
            _pivot(
                f"table-{number}" if len(sliced) > 1 else "table",
                f"{title}, at {where}" if where else title,
                members,
                axes,
                arrangement,
                value,
            )
        )
    return tables


def _shown(arrangement: Arrangement) -> list[str]:
    sides = (arrangement.rows, arrangement.columns)
    return [", ".join(side) for side in sides if side] or ["nothing"]


def _pivot(
    name: str,
    title: str,
    members: list[Line],
    axes: dict[str, Axis],
    arrangement: Arrangement,
    value: Column,
) -> Table:
    rows, columns = arrangement.rows, arrangement.columns
    at = {(_labels(line, rows), _labels(line, columns)): line for line in members}
    heads = [c for c in _combined(axes, columns) if any(key[1] == c for key in at)]
    lines, records = [], []
    for labels in _combined(axes, rows):
        if not any(key[0] == labels for key in at):
            continue
        lines_of_heads = [at.get((labels, head)) for head in heads]
        lines.append((*map(Entry, labels), *map(pivot_entry, lines_of_heads)))
        record: dict[str, Any] = dict(zip(rows, labels, strict=True))
        for head, line in zip(heads, lines_of_heads, strict=True):
            record |= _wide(head, line, value)
        records.append(record)
    words = [" ".join(head) or value.heading for head in heads]
    return Table(name, title, (*rows, *words), lines, records)


def pivot_entry(line: Line | None) -> Entry:
    """Writes one place of a pivot: the mean, its floor, the spread, the outcomes."""
    if line is None:
        return Entry("no cell")
    if not len(line.pool.rows):
        return Entry(line.pool.state)
    texts = [_with_floor(line.value), line.outcomes.text()]
    if line.pool.state != "finished":
        texts.append(victims_text(line.pool))
    drawn = ("outcomes", line.outcomes)
    return Entry("\n".join(texts), known(line.value.mean), drawn)


def _wide(head: tuple[str, ...], line: Line | None, value: Column) -> dict[str, Any]:
    """Makes the CSV columns of one column of a pivot."""
    place = " ".join(head)
    names = ("mean", "low", "high", "spread", "floor", "floor_mean", "left_out")
    columns = _columns(line.value) if line else {}
    found = {name: columns.get(f"{value.name}_{name}") for name in names}
    found["victims"] = line.pool.attacked if line else None
    counts = line.outcomes._asdict() if line else dict.fromkeys(metrics.OUTCOMES)
    return {f"{place} {name}".strip(): kept for name, kept in (found | counts).items()}


def _labels(line: Line, axes: Sequence[str]) -> tuple[str, ...]:
    return tuple(line.pool.point[axis] for axis in axes)


def _combined(axes: dict[str, Axis], names: Sequence[str]) -> list[tuple[str, ...]]:
    return list(itertools.product(*(axes[name].labels for name in names)))


def at_words(point: dict[str, str]) -> str:
    """Writes a point for people: ``attack=dlg, budget=long``."""
    return ", ".join(f"{axis}={label}" for axis, label in point.items())


def _pooled_words(lines: Sequence[Line]) -> str:
    most = max((len(line.pool.cells) for line in lines), default=1)
    return "all its victims" if most == 1 else f"up to {most} repetitions"


def _any(pool: Pool, name: str) -> float:
    """Finds a finite value of this name; NaN if there is none."""
    values = numbers(pool.rows, name)
    finite = values[[math.isfinite(number) for number in values]]
    return float(finite[0]) if len(finite) else math.nan


def to_csv(table: Table) -> str:
    """Writes the records of a table; what is not known is empty."""
    text = io.StringIO(newline="")
    if table.records:
        writer = csv.DictWriter(text, list(table.records[0]))
        writer.writeheader()
        writer.writerows(table.records)
    return text.getvalue()
