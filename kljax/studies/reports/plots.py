"""Plots: how a value is spread, success against budget, and against accuracy."""

import itertools
import re
from collections.abc import Sequence

import numpy as np

from kljax import metrics
from kljax.metrics import Column
from kljax.studies.reports.axes import Axis, arm_axis
from kljax.studies.reports.budgets import Curve
from kljax.studies.reports.estimates import Estimate, estimate
from kljax.studies.reports.figures import Figure, Style, draw_panels
from kljax.studies.reports.kinds import noun, success_share, success_words
from kljax.studies.reports.pools import Pool
from kljax.studies.reports.tables import at_words
from kljax.studies.reports.tradeoffs import Tradeoff, measured_words
from kljax.studies.reports.values import numbers

STEPS = 200  # of a distribution that is drawn: more cannot be seen


def draw_distributions(
    pools: Sequence[Pool],
    axes: dict[str, Axis],
    value: Column,
    kinds: Sequence[str] = ("image",),
) -> Figure | None:
    """Draws the distribution of a value over images, one curve per arm.

    One panel for each combination of the other axes; dashed the floor that leaks most.
    None if no pool has the value.
    """
    arm = arm_axis(axes)
    panels: dict[str, list[tuple[str, Pool]]] = {}
    for pool in pools:
        if np.isfinite(numbers(pool.rows, value.name)).any():
            where = at_words({a: b for a, b in pool.point.items() if a != arm.name})
            panels.setdefault(where, []).append((pool.point[arm.name], pool))
    if not panels:
        return None
    words, inputs = value.heading, f"{noun(kinds)}s"

    def draw(members, style: Style, axis) -> None:
        for name, pool in members:
            axis.plot(
                *_distribution(numbers(pool.rows, value.name)),
                label=name,
                **style.arms[name],
            )
        # Arms have the same victims; in a study that is not finished, some of them.
        most = max((pool for _, pool in members), key=lambda pool: len(pool.rows))
        beside = estimate(most, value.name).floor
        if beside:
            floor = numbers(most.floors[beside.name], value.name)
            axis.plot(
                *_distribution(floor),
                color=style.faint,
                linewidth=2.5,
                alpha=0.6,
                label=f"floor: {beside.name}",
            )
        if value.name == "ssim":
            axis.axvline(
                metrics.SUCCESS_SSIM,
                color=style.faint,
                linewidth=0.8,
                label="success from here on",
            )
        if value.name.startswith("ssim"):
            axis.set_xlim(-0.03, 1.03)
        if value.name.startswith("matching_loss"):
            axis.set_xscale("log")
        axis.set_xlabel(words)
        axis.set_ylabel(f"share of {inputs} at or below")
        axis.set_ylim(-0.02, 1.02)

    lower = "right" if value.leaks >= 0 else "left"
    return draw_panels(
        "distributions",
        f"{words} of every {noun(kinds)}: the share of {inputs} at or below each value",
        f"Empirical distributions of {words} over {inputs}, one curve per arm; the "
        f"further {lower}, the more leaks. The points table has their means.",
        panels,
        arm.labels,
        draw,
    )


def _distribution(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Computes the corners of the empirical distribution of the finite values."""
    ordered = np.sort(values[np.isfinite(values)])
    shares = np.arange(1, len(ordered) + 1) / len(ordered)
    if len(ordered) > STEPS:
        chosen = np.linspace(0, len(ordered) - 1, STEPS).round().astype(int)
        ordered, shares = ordered[chosen], shares[chosen]
    # Up at a value, and level until the next.
    return np.repeat(ordered, 2), np.concatenate([[0], np.repeat(shares, 2)[:-1]])


def draw_budgets(
    curves: Sequence[Curve], axes: dict[str, Axis], kinds: Sequence[str] = ("image",)
) -> Figure | None:
    """Draws success against evaluations, one curve per arm."""
    panels: dict[str, list[Curve]] = {}
    for curve in curves:
        where = at_words(curve.point) or f"along {curve.axis}"
        panels.setdefault(where, []).append(curve)
    if not panels:
        return None

    def draw(members: list[Curve], style: Style, axis) -> None:
        from matplotlib.ticker import PercentFormatter

        for curve in members:
            spent = [point.evaluations for point in curve.points]
            found = [point.success for point in curve.points]
            kept = style.arms[curve.arm]
            axis.plot(
                spent,
                [success.mean for success in found],
                marker="o",
                markersize=3.5,
                label=curve.arm,
                **kept,
            )
            axis.fill_between(
                spent,
                [success.interval.low for success in found],
                [success.interval.high for success in found],
                color=kept["color"],
                alpha=0.13,
                linewidth=0,
            )
        _draw_floor(axis, style, members)
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))
        axis.set_ylim(-0.03, 1.03)
        axis.set_xlabel("evaluations per victim")
        axis.set_ylabel(success_words(kinds))

    return draw_panels(
        "budgets",
        "Success against attack budget",
        f"Share of {success_share(kinds)} against the number of evaluations, one"
        " curve per arm with its 95 % interval, and the best floor. The table below "
        "has the numbers.",
        panels,
        arm_axis(axes).labels,
        draw,
    )


def _draw_floor(axis, style: Style, members: list[Curve]) -> None:
    floors: dict[int, float] = {}
    for curve in members:
        for point in curve.points:
            if point.success.floor:
                # Arms that are not finished have seen some of the victims only.
                least = floors.get(point.evaluations, 0.0)
                floors[point.evaluations] = max(least, point.success.floor.mean)
    if floors:
        spent = sorted(floors)
        axis.plot(
            spent,
            [floors[n] for n in spent],
            color=style.faint,
            linewidth=2.5,
            alpha=0.6,
            label="best floor",
        )


def draw_tradeoffs(
    tradeoffs: Sequence[Tradeoff],
    axes: dict[str, Axis],
    kinds: Sequence[str] = ("image",),
) -> Figure | None:
    """Draws success against accuracy, one mark per attacked arm and training.

    Defences that differ in their strength alone are joined.
    """
    panels: dict[str, list[Tradeoff]] = {}
    for tradeoff in tradeoffs:
        panels.setdefault(at_words(tradeoff.point), []).append(tradeoff)
    if not panels:
        return None

    def draw(members: list[Tradeoff], style: Style, axis) -> None:
        from matplotlib.ticker import PercentFormatter

        for tradeoff in members:
            low, high = interval_lengths(tradeoff.success)
            axis.errorbar(
                tradeoff.accuracy,
                tradeoff.success.mean,
                xerr=np.nan_to_num(tradeoff.deviation),
                yerr=[[low], [high]],
                marker="o",
                markersize=5,
                linewidth=1,
                color=style.arms[tradeoff.arm]["color"],
                linestyle="none",
                label=tradeoff.arm,
            )
        alike = sorted(members, key=lambda t: (_family(t), t.accuracy))
        for _, family in itertools.groupby(alike, _family):
            joined = list(family)
            axis.plot(
                [tradeoff.accuracy for tradeoff in joined],
                [tradeoff.success.mean for tradeoff in joined],
                color=style.faint,
                linewidth=0.8,
                zorder=0,
            )
        floors = [t.success.floor.mean for t in members if t.success.floor]
        if floors:
            axis.axhline(
                max(floors),
                color=style.faint,
                linewidth=2.5,
                alpha=0.6,
                label="best floor",
            )
        axis.margins(x=0.15)
        axis.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=1))
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))
        axis.set_ylim(-0.03, 1.03)
        axis.set_xlabel(f"test {measured_words(members)}")
        axis.set_ylabel(success_words(kinds))

    measured = measured_words(tradeoffs)
    return draw_panels(
        "tradeoffs",
        f"Privacy against {measured}",
        f"Share of {success_share(kinds)} against test {measured}, one mark per "
        "attacked arm; lower right is better for the client. The table below has the "
        "numbers.",
        panels,
        arm_axis(axes).labels,
        draw,
    )


def _family(tradeoff: Tradeoff) -> tuple[str, tuple[str, ...]]:
    """Names what strengths of one defence share."""
    return re.sub(r"=[^+/]*", "", tradeoff.arm), tradeoff.runs


def interval_lengths(success: Estimate) -> tuple[float, float]:
    """Gives how far an interval reaches down and up; NaN, which draws none, if unknown.

    Rounding may put a mean outside of its interval, and lengths below 0 are refused.
    """
    low = success.mean - success.interval.low
    high = success.interval.high - success.mean
    return tuple(np.maximum(0.0, [low, high]).tolist())
