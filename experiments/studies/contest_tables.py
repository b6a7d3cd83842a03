"""The tables of experiments/defences.py: who finds what, and what a defence costs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas
from tabulate import tabulate

from kljax import metrics
from kljax.studies.frames import study_frame
from kljax.studies.store import Study

from .contests import Contest

FLOOR = "floor/"
NOT_RUN = "not run"
SCORES = ("ssim", "ssim_affine_oracle", "psnr")
LEAKAGE = (
    "defence",
    "attacker",
    "arm",
    "method",
    "recovered",
    "up to contrast",
    "both [95 %]",
    "unsolved",
    "ambiguous",
    "diverged",
    "SSIM [95 %]",
    "SSIM affine oracle [95 %]",
    "PSNR dB",
)
RIGHT = ("recovered", "recovered_affine")
COUNTED = ("recovered", "recovered_affine", "unsolved", "ambiguous", "diverged")
COST = (
    "defence",
    "step, times undefended [quartiles]",
    "bytes, dense",
    "bytes, coded",
    "hidden",
)


Rows = Mapping[str, pandas.DataFrame]  # method -> rows
NOTHING = pandas.DataFrame(
    columns=["cell", "arm", "outcome", "group", *SCORES], dtype=object
)


def rows_of(study: Study) -> pandas.DataFrame:
    """Reads the rows of a part, with arms as plain words."""
    frame = study_frame(study)
    return frame.assign(arm=frame["arm"].astype(str))


def leakage_table(contests: Sequence[Contest], rows: Rows):
    """Tables what each attacker finds, a line each, and the floors.

    Args:
      contests: the lines.
      rows: of each method, see `rows_of`; an arm without rows was not run.

    Returns:
      A Markdown table.
    """
    body = [
        [
            c.combination,
            c.attacker,
            f"`{c.arm}`",
            c.method,
            *cells(own_rows(rows[c.method], c.arm)),
        ]
        for c in contests
    ]
    for name, values in floors(rows).items():
        ssim, affine, psnr = (values[score].mean() for score in SCORES)
        scores = [f"{ssim:.3f}", f"{affine:.3f}", f"{psnr:.1f}"]
        body.append([f"floor {name}", *"-" * 9, *scores])
    return tabulate(body, LEAKAGE, tablefmt="pipe", disable_numparse=True)


def own_rows(rows: pandas.DataFrame, arm: str) -> pandas.DataFrame:
    """Picks the rows of an arm."""
    return rows[rows["arm"] == arm]


def floors(rows: Rows) -> dict[str, pandas.DataFrame]:
    """Picks each floor's rows, of the first cell of all that has any."""
    for frame in rows.values():
        found = frame[frame["arm"].str.startswith(FLOOR)]
        if len(found):
            first = found[found["cell"] == found["cell"].iloc[0]]
            return {
                name.removeprefix(FLOOR): own
                for name, own in first.groupby("arm", sort=False)
                if np.isfinite(own["ssim"].to_numpy(float)).any()
            }
    return {}


def cells(own: pandas.DataFrame) -> list[str]:
    """Writes what was found of an arm: outcomes, and scores with their intervals."""
    if own.empty:
        return [NOT_RUN, *"-" * 8]
    outcomes = own["outcome"].astype(str)
    counts = [str((outcomes == name).sum()) for name in COUNTED]
    right = outcomes.isin(RIGHT).to_numpy(float)
    groups = own["group"].to_numpy()
    rate = metrics.interval(right, groups, rate=True)
    return [
        f"{counts[0]}/{len(own)}",
        counts[1],
        f"{rate.estimate:.0%} [{rate.low:.0%}, {rate.high:.0%}]",
        *counts[2:],
        *(write_score(finite_interval(own, score)) for score in SCORES[:2]),
        f"{own['psnr'].mean():.1f}" if np.isfinite(own["psnr"]).any() else "-",
    ]


def finite_interval(own: pandas.DataFrame, score: str) -> metrics.Interval | None:
    """Gives a mean and its interval over victims that have the score; None if none has.

    A closed form that finds nothing gives no image: such a victim is diverged, and is
    counted there.
    """
    values = own[score].to_numpy(float)
    there = np.isfinite(values)
    if not there.any():
        return None
    return metrics.interval(values[there], own["group"].to_numpy()[there], rate=False)


def write_score(found: metrics.Interval | None) -> str:
    """Writes a mean with its interval, where victims differ enough to show one."""
    if found is None:
        return "-"
    if np.isnan(found.low):
        return f"{found.estimate:.3f}"
    return f"{found.estimate:.3f} [{found.low:.3f}, {found.high:.3f}]"


def accuracy_table(combinations: Sequence[str], accuracies: Mapping[str, float]) -> str:
    """Tables what a training reaches under each defence, as Markdown.

    Args:
      combinations: the lines.
      accuracies: by combination, in %; what is missing was not run.
    """
    body = [
        [f"`{name}`", f"{accuracies[name]:.1f}" if name in accuracies else NOT_RUN]
        for name in combinations
    ]
    return tabulate(
        body, ("defence", "accuracy %"), tablefmt="pipe", disable_numparse=True
    )


def cost_table(
    combinations: Sequence[str], costs: Mapping[str, Mapping[str, Any]]
) -> str:
    """Tables what a defence costs its client, as Markdown.

    Args:
      combinations: the lines.
      costs: by combination, see `defence_costs.measure`; what is missing was not run.
    """
    body = []
    for name in combinations:
        cost = costs.get(name)
        if cost is None or "refused" in cost:
            words = NOT_RUN if cost is None else "refused"
            body.append([f"`{name}`", words, *"-" * 3])
            continue
        quartiles = f"[{cost['times_low']:.2f}, {cost['times_high']:.2f}]"
        body.append(
            [
                f"`{name}`",
                f"{cost['times']:.2f} {quartiles}",
                f"{cost['dense']:,}",
                f"{cost['coded']:,}",
                f"{cost['hidden']:.0%}" if cost["hidden"] else "-",
            ]
        )
    table = tabulate(body, COST, tablefmt="pipe", disable_numparse=True)
    refused = {
        name: cost["refused"] for name, cost in costs.items() if "refused" in cost
    }
    reasons = [f"- `{name}` is refused: {why}" for name, why in refused.items()]
    return "\n\n".join([table, "\n".join(reasons)]).rstrip()
