"""Trends: a value along numbers: strengths of a defence, batch sizes, rounds, ..."""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from kljax.defences.arm_options import NUMBER
from kljax.metrics import Column
from kljax.studies.reports.axes import BUDGET, REPEATED, Axis, arm_axis
from kljax.studies.reports.estimates import Estimate, estimate
from kljax.studies.reports.figures import Figure, Style, draw_panels
from kljax.studies.reports.pools import Pool
from kljax.studies.reports.tables import at_words

STRENGTH = re.compile(rf"=({NUMBER})(?=[+/@]|$)")
LOG = 8  # how many times the smallest number the largest is on a logarithmic axis


class Trend(NamedTuple):
    """Pools that differ in one number alone, the smallest first.

    Attributes:
      along: what the number is.
      name: of the arm, without the number where that is its strength.
      point: where all of them stand on the remaining axes.
      at: numbers, two at least.
      found: the value at each.
    """

    along: str
    name: str
    point: dict[str, str]
    at: tuple[float, ...]
    found: tuple[Estimate, ...]


def make_trends(
    pools: Sequence[Pool], axes: dict[str, Axis], value: str
) -> list[Trend]:
    """Finds all trends of a study: along axes of one number, and along strengths.

    An axis is of one number if its points set one field, to numbers that differ.
    Budgets are left to `kljax.studies.reports.budgets`. A strength is the only number
    that an arm is written with; of a defence of several options none is.
    """
    arm = arm_axis(axes).name
    found: dict[tuple, dict[float, Estimate]] = {}
    for pool in pools:
        if not len(pool.rows):
            continue
        for along, name, number, rest in _places(pool, axes, arm):
            point = tuple((a, b) for a, b in pool.point.items() if a in rest)
            at = found.setdefault((along, name, point), {})
            at[number] = estimate(pool, value)
    return [
        Trend(along, name, dict(point), *zip(*sorted(at.items()), strict=True))
        for (along, name, point), at in found.items()
        if len(at) > 1
    ]


def _places(
    pool: Pool, axes: dict[str, Axis], arm: str
) -> Iterator[tuple[str, str, float, set[str]]]:
    """Says on which trends a pool stands: along, name, number, the axes that stay."""
    label, others = pool.point[arm], pool.point.keys() - {arm}
    strengths = STRENGTH.findall(label)
    if len(strengths) == 1 and label.count("=") == 1:
        defence = STRENGTH.sub("", label)
        # Strategies of one defence are lines of one panel.
        along = f"strength of {defence.partition('/')[0]}"
        yield along, defence, float(strengths[0]), others
    for axis in axes.values():
        number = _number_of(pool, axis)
        if axis.name in others and number is not None:
            yield axis.name, label, number, others - {axis.name}


def _number_of(pool: Pool, axis: Axis) -> float | None:
    """Reads the number that an axis sets; None if it is not the only thing it sets."""
    if len(axis.fields) != 1 or axis.fields <= BUDGET | REPEATED:
        return None
    (field,) = axis.fields
    value = pool.cells[0]["config"].get(field)
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if numeric else None


def draw_trends(trends: Sequence[Trend], value: Column) -> Figure | None:
    """Draws a panel for each thing that grows, one line per arm, its best floor dashed.

    None if there is no trend.
    """
    panels: dict[str, list[Trend]] = {}
    for trend in trends:
        where = at_words(trend.point)
        panels.setdefault(
            f"{trend.along}, {where}" if where else trend.along, []
        ).append(trend)
    if not panels:
        return None

    def draw(members: list[Trend], style: Style, axis) -> None:
        for n, trend in enumerate(members):
            kept = style.arms[trend.name]
            means = [found.mean for found in trend.found]
            axis.plot(
                trend.at, means, marker="o", markersize=3.5, label=trend.name, **kept
            )
            axis.fill_between(
                trend.at,
                [found.interval.low for found in trend.found],
                [found.interval.high for found in trend.found],
                color=kept["color"],
                alpha=0.13,
                linewidth=0,
            )
            floors = [
                found.floor.mean if found.floor else None for found in trend.found
            ]
            if None not in floors and n == 0:  # arms have the same victims
                axis.plot(
                    trend.at,
                    floors,
                    color=style.faint,
                    linewidth=2.5,
                    alpha=0.6,
                    label="best floor",
                )
        at = [number for trend in members for number in trend.at]
        if min(at) > 0 and max(at) >= LOG * min(at):
            axis.set_xscale("log")
        axis.set_xlabel(members[0].along)
        axis.set_ylabel(value.heading)
        if value.name.startswith("ssim") or value.is_share:
            axis.set_ylim(-0.03, 1.03)

    return draw_panels(
        "trends",
        f"{value.heading} along what grows",
        f"Mean {value.heading} against each number that was varied, one line per arm "
        "with its 95 % interval, and the best floor. The points table has the numbers.",
        panels,
        tuple(dict.fromkeys(trend.name for trend in trends)),
        draw,
    )
