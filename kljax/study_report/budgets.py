"""Budgets: success against the evaluations that an attack may spend."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from kljax.metrics import Interval
from kljax.study_report.axes import Axis, arm_axis
from kljax.study_report.estimates import Estimate, by_victim, estimate, mean_difference
from kljax.study_report.pools import Pool
from kljax.study_report.successes import HEADER, success_entries, success_record
from kljax.study_report.tables import Entry, Table, at_words
from kljax.study_report.values import known
from kljax.study_report.verdicts import Outcomes, count_outcomes


class Spent(NamedTuple):
    """One point of a curve."""

    label: str  # of the point on the axis
    restarts: int
    steps: int
    pool: Pool
    success: Estimate
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
    """

    axis: str
    arm: str
    point: dict[str, str]
    points: tuple[Spent, ...]
    doubling: Spent | None
    gain: Interval | None

    @property
    def name(self) -> str:
        return at_words({"": self.arm, **self.point}).removeprefix("=")

    def reads(self) -> str:
        """Says whether the attack had finished."""
        if self.doubling is None:
            return "no budget is twice another: it cannot be said whether success rises"
        last, before = self.points[-1].evaluations, self.doubling.evaluations
        share = f"{100 * self.gain.estimate:+.0f} points"
        step = f"from {before:,} to {last:,} evaluations: {share}"
        if self.gain.low > 0:
            return f"{step}; still rising, so the last rate is a lower bound"
        if self.gain.high < 0:
            return f"{step}; falling"
        return f"{step}; no rise beyond chance"


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
    gain = _gain(doubling, last, axis.name) if doubling else None
    if gain is None:
        doubling = None
    return Curve(axis.name, pools[0].point[arm], rest, tuple(points), doubling, gain)


def _spent(pool: Pool, axis: Axis) -> Spent:
    config = pool.cells[0]["config"]
    return Spent(
        pool.point[axis.name],
        config["restarts"],
        config["steps"],
        pool,
        estimate(pool, "success"),
        count_outcomes(pool),
    )


def _gain(before: Spent, after: Spent, axis: str) -> Interval | None:
    """Estimates the paired difference; None if no victim has spent both."""

    def read(spent: Spent, name: str) -> dict[tuple, float]:
        at = {
            cell["id"]: tuple(v for a, v in cell["point"].items() if a != axis)
            for cell in spent.pool.cells
        }
        rows = by_victim(spent.pool.rows, name)
        return {(at[cell], victim): n for (cell, victim), n in rows.items()}

    old, new = read(before, "success"), read(after, "success")
    groups = read(after, "group")
    both = [victim for victim in new if victim in old]
    if not both:
        return None
    differences = np.array([new[victim] - old[victim] for victim in both])
    return mean_difference(
        "success", differences, np.array([groups[victim] for victim in both])
    )


def budgets_table(curves: Sequence[Curve]) -> Table:
    """Tables all points of all curves."""
    rest = tuple(dict.fromkeys(axis for curve in curves for axis in curve.point))
    header = (
        "arm",
        *rest,
        "budget",
        "evaluations",
        *HEADER,
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
            *success_entries(spent.success, spent.outcomes),
        )
        for curve, spent in places
    ]
    return Table(
        "budgets",
        "Success against evaluations",
        header,
        lines,
        [_record(curve, spent, rest) for curve, spent in places],
    )


def _record(curve: Curve, spent: Spent, rest: Sequence[str]) -> dict[str, Any]:
    record: dict[str, Any] = {"arm": curve.arm}
    record |= {axis: curve.point.get(axis) for axis in rest}
    record |= {
        "axis": curve.axis,
        "label": spent.label,
        "restarts": spent.restarts,
        "steps": spent.steps,
        "evaluations": spent.evaluations,
        **success_record(spent.success),
    }
    gain = curve.gain if spent is curve.points[-1] and curve.gain else None
    return (
        record
        | spent.outcomes._asdict()
        | {
            "gain_from": curve.doubling.evaluations if gain else None,
            "gain": known(gain.estimate) if gain else None,
            "gain_low": known(gain.low) if gain else None,
            "gain_high": known(gain.high) if gain else None,
        }
    )
