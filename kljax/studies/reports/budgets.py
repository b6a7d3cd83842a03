"""Budgets: success against the evaluations that an attack may spend."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from kljax.metrics import COLUMNS, Interval
from kljax.studies.reports.axes import Axis, arm_axis
from kljax.studies.reports.estimates import (
    Estimate,
    by_image,
    estimate,
    mean_difference,
    signed,
)
from kljax.studies.reports.pools import Pool
from kljax.studies.reports.readings import direction, read_differences
from kljax.studies.reports.successes import (
    names_of,
    success_entries,
    success_header,
    success_record,
)
from kljax.studies.reports.tables import Entry, Table, at_words
from kljax.studies.reports.values import known
from kljax.studies.reports.verdicts import Outcomes, count_outcomes

RISING = {
    1: "still rising",
    -1: "falling",
    0: "no rise beyond chance",
    None: "whether it rises is not known",
}


class Spent(NamedTuple):
    """One point of a curve."""

    label: str  # of the point on the axis
    restarts: int
    steps: int
    pool: Pool
    success: Estimate
    score: Estimate  # the primary one of its inputs
    outcomes: Outcomes

    @property
    def evaluations(self) -> int:
        return self.restarts * self.steps


class Curve(NamedTuple):
    """Pools that differ in their budget alone, the smallest first.

    Attributes:
      axis: that sets the budget.
      arm: point of the axis that sets the arm.
      point: where all of them stand on the remaining axes.
      points: two at least, with rows.
      doubling: from which point to the last it is asked what the last doubling of the
        budget brought: the largest of at most half of the last; None if there is none.
      gain: how much success rose from there to the last, on the same victims.
      score_gain: how much the primary score rose; NaN throughout where no victim has
        both.
    """

    axis: str
    arm: str
    point: dict[str, str]
    points: tuple[Spent, ...]
    doubling: Spent | None
    gain: Interval | None
    score_gain: Interval | None

    @property
    def name(self) -> str:
        return at_words({"": self.arm, **self.point}).removeprefix("=")

    def reads(self) -> str:
        """Says whether the attack had finished."""
        if self.doubling is None:
            return "no budget is twice another: it cannot be said whether success rises"
        last, before = self.points[-1].evaluations, self.doubling.evaluations
        step = f"from {before:,} to {last:,} evaluations"
        if self.gain is None:
            return f"{step}: not known, no victim has spent both"
        score = self.points[-1].score.value
        gains = {score.heading: self.score_gain, "success": self.gain}
        sentence = read_differences(gains, RISING)
        if sentence == RISING[1]:
            sentence += ", so the last rate is a lower bound"
        elif 1 in map(direction, gains.values()):
            sentence += "; the last scores are lower bounds"
        step += f": {100 * self.gain.estimate:+.0f} points"
        if np.isfinite(self.score_gain.estimate):
            step += f", {score.heading} {signed(score, self.score_gain.estimate)}"
            step += " points" if score.is_share else ""
        return f"{step}; {sentence}"


def make_curves(pools: Sequence[Pool], axes: dict[str, Axis]) -> list[Curve]:
    """Finds the curves of every axis that sets ``steps`` or ``restarts`` alone."""
    curves = []
    for axis in axes.values():
        if not axis.budgets:
            continue
        together: dict[tuple[str, ...], list[Pool]] = {}
        for pool in pools:
            if axis.name in pool.point and len(pool.rows):
                others = tuple(v for a, v in pool.point.items() if a != axis.name)
                together.setdefault(others, []).append(pool)
        found = (_curve(members, axis, axes) for members in together.values())
        curves += [curve for curve in found if curve is not None]
    return curves


def _curve(pools: list[Pool], axis: Axis, axes: dict[str, Axis]) -> Curve | None:
    points = sorted(
        (_spent(pool, axis) for pool in pools), key=lambda spent: spent.evaluations
    )
    if points[0].evaluations == points[-1].evaluations:
        return None
    last = points[-1]
    halves = [p for p in points if 2 * p.evaluations <= last.evaluations]
    doubling = halves[-1] if halves else None
    arm = arm_axis(axes).name
    rest = {a: b for a, b in pools[0].point.items() if a not in (arm, axis.name)}
    gains = (
        _gain(doubling, last, axis.name, value) if doubling else None
        for value in ("success", last.pool.primary)
    )
    return Curve(axis.name, pools[0].point[arm], rest, tuple(points), doubling, *gains)


def _spent(pool: Pool, axis: Axis) -> Spent:
    config = pool.cells[0]["config"]
    return Spent(
        pool.point[axis.name],
        config["restarts"],
        config["steps"],
        pool,
        estimate(pool, "success"),
        estimate(pool, pool.primary),
        count_outcomes(pool),
    )


def _gain(before: Spent, after: Spent, axis: str, value: str) -> Interval | None:
    """Estimates the paired difference; None if no victim has spent both."""

    def read(spent: Spent, name: str) -> dict[tuple, float]:
        at = {
            cell["id"]: tuple(v for a, v in cell["point"].items() if a != axis)
            for cell in spent.pool.cells
        }
        rows = by_image(spent.pool, spent.pool.rows, name)
        return {(at[cell], *image): n for (cell, *image), n in rows.items()}

    old, new = read(before, value), read(after, value)
    groups = read(after, "group")
    both = [victim for victim in new if victim in old]
    if not both:
        return None
    return mean_difference(
        COLUMNS[value],
        np.array([new[victim] - old[victim] for victim in both]),
        np.array([groups[victim] for victim in both]),
    )


def budgets_table(curves: Sequence[Curve]) -> Table:
    """Tables all points of all curves."""
    rest = tuple(dict.fromkeys(axis for curve in curves for axis in curve.point))
    points = [spent for curve in curves for spent in curve.points]
    scores = [spent.score for spent in points]
    header = (
        "arm",
        *rest,
        "budget",
        "evaluations",
        *success_header([spent.success for spent in points], scores),
    )
    places = [(curve, spent) for curve in curves for spent in curve.points]
    lines = [
        (
            Entry(curve.arm),
            *(Entry(curve.point.get(axis, "-")) for axis in rest),
            Entry(f"{curve.axis}={spent.label}"),
            Entry(
                f"{spent.restarts} x {spent.steps:,} = {spent.evaluations:,}",
                spent.evaluations,
            ),
            *success_entries(spent.success, spent.score, spent.outcomes),
        )
        for curve, spent in places
    ]
    return Table(
        "budgets",
        "Success against evaluations",
        header,
        lines,
        [_record(curve, spent, rest, names_of(scores)) for curve, spent in places],
    )


def _record(
    curve: Curve, spent: Spent, rest: Sequence[str], names: Sequence[str]
) -> dict[str, Any]:
    record: dict[str, Any] = {"arm": curve.arm}
    record |= {axis: curve.point.get(axis) for axis in rest}
    record |= {
        "axis": curve.axis,
        "label": spent.label,
        "restarts": spent.restarts,
        "steps": spent.steps,
        "evaluations": spent.evaluations,
        **success_record(spent.success, spent.score, names),
    }
    gain = curve.gain if spent is curve.points[-1] and curve.gain else None
    record |= spent.outcomes._asdict() | {
        "gain_from": curve.doubling.evaluations if gain else None,
        "gain": known(gain.estimate) if gain else None,
        "gain_low": known(gain.low) if gain else None,
        "gain_high": known(gain.high) if gain else None,
    }
    for name in names:
        its = curve.score_gain if gain and spent.score.value.name == name else None
        record |= {
            f"{name}_gain": known(its.estimate) if its else None,
            f"{name}_gain_low": known(its.low) if its else None,
            f"{name}_gain_high": known(its.high) if its else None,
        }
    return record
