"""Comparisons: arms against each other on the same victims."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kljax.metrics import COLUMNS, Column, Interval
from kljax.studies.reports.axes import WHO, Axis, arm_axis
from kljax.studies.reports.estimates import (
    by_image,
    mean_difference,
    signed,
    with_interval,
)
from kljax.studies.reports.p_values import holm, mcnemar, p_text, sign_flips
from kljax.studies.reports.pools import Pool
from kljax.studies.reports.tables import Entry, Table
from kljax.studies.reports.values import known

SUCCESS = COLUMNS["success"]


class Comparison(NamedTuple):
    """Two arms on the victims that both attacked, all else being equal.

    Attributes:
      first, second: points of the axis that sets the arm; differences are second minus
        first.
      point: where both stand on the other axes.
      pairs: victims in both.
      groups: that they fall into.
      difference: of the means of the value, with the 95 % interval of a bootstrap of
        pairs over groups; NaN throughout if no pair has finite values.
      difference_p: two-sided p-value for equal values, see `sign_flips`; NaN if no pair
        has finite values.
      difference_p_holm: adjusted for the number of comparisons by Holm's method.
      left_out: pairs of which a value is not finite.
      successes: of the pairs, in the first and in the second.
      floor: successes of the floor that succeeds most on these victims, and its name;
        None if there are no floors.
      only: pairs in which only the first, and only the second, succeeds.
      success_p: exact two-sided p-value for equal success rates, see `mcnemar`. It is 1
        where both always succeed, whatever their scores.
      success_p_holm: adjusted as `difference_p_holm`.
      unsolved: pairs whose gradient was not matched, in the first and in the second.
    """

    first: str
    second: str
    point: dict[str, str]
    pairs: int
    groups: int
    difference: Interval
    difference_p: float
    difference_p_holm: float
    left_out: int
    successes: tuple[int, int]
    floor: tuple[str, float] | None
    only: tuple[int, int]
    success_p: float
    success_p_holm: float
    unsolved: tuple[int, int]


def compare_arms(
    pools: Sequence[Pool], axes: dict[str, Axis], value: str
) -> list[Comparison]:
    """Compares every two arms at every point of the other axes.

    Pairs are the same victim of the same seed. Nothing is compared where the axis of
    the arms says who the victims are, too.
    """
    arms = arm_axis(axes)
    if arms.fields & WHO:
        return []
    together: dict[tuple[str, ...], list[Pool]] = {}
    for pool in pools:
        others = tuple(v for axis, v in pool.point.items() if axis != arms.name)
        together.setdefault(others, []).append(pool)
    comparisons = []
    for members in together.values():
        members = [pool for pool in members if len(pool.rows)]
        for first, second in itertools.combinations(members, 2):
            compared = compare_pools(
                first, second, _repetitions(first, second, arms.name), value
            )
            if compared is not None:
                at = {a: b for a, b in first.point.items() if a != arms.name}
                sides = first.point[arms.name], second.point[arms.name]
                comparisons.append(
                    compared._replace(first=sides[0], second=sides[1], point=at)
                )
    return adjust_together(comparisons)


def adjust_together(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Adjusts the p-values of comparisons for their number, by Holm's method."""
    of_values = holm([comparison.difference_p for comparison in comparisons])
    of_success = holm([comparison.success_p for comparison in comparisons])
    return [
        comparison._replace(difference_p_holm=value_p, success_p_holm=success_p)
        for comparison, value_p, success_p in zip(
            comparisons, of_values, of_success, strict=True
        )
    ]


def _repetitions(first: Pool, second: Pool, arm: str) -> list[dict[str, Any]]:
    """Says of which repetition cells are: they stand at one point but for the arm."""
    return [
        {
            cell["id"]: tuple(v for axis, v in cell["point"].items() if axis != arm)
            for cell in pool.cells
        }
        for pool in (first, second)
    ]


def compare_pools(
    first: Pool,
    second: Pool,
    repetitions: Sequence[Mapping[str, Any]],
    value: str,
) -> Comparison | None:
    """Compares two pools on the victims that both attacked; None without any.

    Args:
      first, second: the pools, whose names and point are left to the caller.
      repetitions: of each pool, by id of a cell, what it shares with its like in the
        other.
      value: whose mean is compared.
    """

    def read(side: int, name: str) -> dict[tuple, float]:
        pool, repetition = (first, second)[side], repetitions[side]
        return {
            (repetition[cell], *image): number
            for (cell, *image), number in by_image(pool, pool.rows, name).items()
        }

    succeeded = [read(side, "success") for side in (0, 1)]
    both = [victim for victim in succeeded[0] if victim in succeeded[1]]
    if not both:
        return None
    found_groups = read(0, "group")
    groups = np.array([found_groups[victim] for victim in both])
    success = np.array([[of[victim] for victim in both] for of in succeeded]) == 1
    values = [read(side, value) for side in (0, 1)]
    differences = np.array([values[1][v] - values[0][v] for v in both])
    unsolved = [read(side, "unsolved") for side in (0, 1)]
    return Comparison(
        first="",
        second="",
        point={},
        pairs=len(both),
        groups=len(np.unique(groups)),
        difference=mean_difference(first.values[value], differences, groups),
        difference_p=sign_flips(differences, groups),
        difference_p_holm=math.nan,
        left_out=int((~np.isfinite(differences)).sum()),
        successes=(int(success[0].sum()), int(success[1].sum())),
        floor=_floor(first, both, repetitions[0]),
        only=(
            int((success[0] & ~success[1]).sum()),
            int((success[1] & ~success[0]).sum()),
        ),
        success_p=mcnemar(success[0], success[1], groups),
        success_p_holm=math.nan,
        unsolved=tuple(sum(of[v] == 1 for v in both) for of in unsolved),
    )


def _floor(
    pool: Pool, both: list, repetition: Mapping[str, Any]
) -> tuple[str, float] | None:
    wanted = set(both)
    best = None
    for name, rows in pool.floors.items():
        of_floor = {
            (repetition[cell], *image): number
            for (cell, *image), number in by_image(pool, rows, "success").items()
        }
        rate = np.mean([n for v, n in of_floor.items() if v in wanted] or [math.nan])
        if math.isfinite(rate) and (best is None or rate > best[1]):
            best = name, float(rate)
    return best


def comparisons_table(
    comparisons: Sequence[Comparison],
    value: Column,
    success: Column = SUCCESS,
    *,
    name: str = "comparisons",
    title: str = "Arms on the same victims",
    side: str = "arm",
) -> Table:
    """Tables all comparisons.

    Args:
      comparisons: in order.
      value: whose means are compared.
      success: called what it is of the study's inputs.
      name, title: of the table.
      side: what is compared.
    """
    axes = tuple(comparisons[0].point) if comparisons else ()
    words, succeeds = value.heading, success.heading
    header = (
        *axes,
        side,
        "minus",
        "pairs",
        f"{words}, difference [95 %]",
        *_p_header(words, len(comparisons)),
        f"{succeeds}: {side} / minus",
        f"only {side} / only minus",
        *([] if value.name == "success" else _p_header(succeeds, len(comparisons))),
        f"unsolved: {side} / minus",
    )
    return Table(
        name,
        f"{title}: {len(comparisons)} comparisons",
        header,
        [_entries(comparison, value) for comparison in comparisons],
        [_record(one, value, len(comparisons), side) for one in comparisons],
    )


def _p_header(words: str, count: int) -> list[str]:
    return [f"{words}: p", f"{words}: p, Holm of {count}"]


def _entries(comparison: Comparison, value: Column) -> tuple[Entry, ...]:
    return (
        *map(Entry, comparison.point.values()),
        Entry(comparison.second),
        Entry(comparison.first),
        Entry(_pairs(comparison), comparison.pairs),
        Entry(_difference(comparison, value), known(comparison.difference.estimate)),
        *_p_entries(comparison.difference_p, comparison.difference_p_holm),
        Entry(_rates(comparison), comparison.successes[1]),
        Entry(f"{comparison.only[1]} / {comparison.only[0]}", comparison.only[1]),
        *(
            []
            if value.name == "success"
            else _p_entries(comparison.success_p, comparison.success_p_holm)
        ),
        Entry(
            f"{comparison.unsolved[1]} / {comparison.unsolved[0]}",
            comparison.unsolved[1],
        ),
    )


def _p_entries(*ps: float) -> list[Entry]:
    return [Entry(p_text(p), known(p)) for p in ps]


def _pairs(comparison: Comparison) -> str:
    texts = [str(comparison.pairs)]
    if comparison.groups != comparison.pairs:
        texts.append(f"in {comparison.groups} groups")
    if comparison.left_out:
        texts.append(f"{comparison.left_out} left out")
    return "\n".join(texts)


def _difference(comparison: Comparison, value: Column) -> str:
    if not math.isfinite(comparison.difference.estimate):
        return "-"
    return with_interval(value, comparison.difference, signed)


def _rates(comparison: Comparison) -> str:
    first, second = (
        SUCCESS.written(n / comparison.pairs) for n in comparison.successes
    )
    if comparison.floor is None:
        return f"{second} / {first}"
    name, rate = comparison.floor
    return f"{second} / {first}\nfloor {SUCCESS.written(rate)} ({name})"


def _record(
    comparison: Comparison, value: Column, count: int, side: str
) -> dict[str, Any]:
    return dict(comparison.point) | {
        side: comparison.second,
        "minus": comparison.first,
        "pairs": comparison.pairs,
        "groups": comparison.groups,
        "value": value.name,
        "difference": known(comparison.difference.estimate),
        "low": known(comparison.difference.low),
        "high": known(comparison.difference.high),
        "interval": comparison.difference.method,
        "left_out": comparison.left_out,
        f"{side}_success": comparison.successes[1] / comparison.pairs,
        "minus_success": comparison.successes[0] / comparison.pairs,
        "floor": comparison.floor[0] if comparison.floor else None,
        "floor_success": comparison.floor[1] if comparison.floor else None,
        f"only_{side}": comparison.only[1],
        "only_minus": comparison.only[0],
        "difference_p": known(comparison.difference_p),
        "difference_p_holm": known(comparison.difference_p_holm),
        "success_p": comparison.success_p,
        "success_p_holm": comparison.success_p_holm,
        "comparisons": count,
        f"{side}_unsolved": comparison.unsolved[1],
        "minus_unsolved": comparison.unsolved[0],
    }
