"""The pictures of experiments/defences.md, one per question.

Who finds the image (`draw_attackers`), does strength help (`draw_strengths`), what does
it cost the client (`draw_costs`). What was not run is left out.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
import pandas

from kljax.defences.catalogue import KINDS, write_strengths

from .contest_tables import RIGHT, Rows, finite_interval, floors, own_rows
from .contests import Contest, at_strengths

SCORE = "ssim_affine_oracle"
MARKS = {
    "only": ("s", "black"),
    "unaware": ("o", "tab:blue"),
    "adaptive": ("D", "tab:red"),
    "informed": ("^", "tab:green"),
}
FAILED = ("unsolved", "diverged")
STRENGTHS = ("weak", "middle", "strong")
KNOWING = ("only", "adaptive")
SHADES = ("lightsteelblue", "cornflowerblue", "navy")
LEAST_SHARE = 1e-3  # of the dense bytes: where the axis ends
UNDEFENDED = "none"
TICKS = (0.001, 0.01, 0.1, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)


def draw_attackers(contests: Iterable[Contest], rows: Rows, file: Path) -> bool:
    """Draws the score of each attacker of each defence, at its middle strength.

    A mark is hollow where the attack failed with most of its victims.

    Returns:
      Whether there was anything to draw.
    """
    lines: dict[str, list[tuple[str, pandas.DataFrame]]] = {}
    for contest in contests:
        own = own_rows(rows[contest.method], contest.arm)
        middle = at_strengths(contest.defence, middle=True)
        if contest.combination in middle and len(own):
            lines.setdefault(contest.combination, []).append((contest.attacker, own))
    if not lines:
        return False
    size = (7.5, 1.4 + 0.24 * len(lines))
    figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    for place, found in enumerate(lines.values()):
        for n, (attacker, own) in enumerate(found):
            y = place + 0.5 * ((n + 0.5) / len(found) - 0.5)
            _draw_mark(axes, y, attacker, own)
    floor = best_floor(rows)
    axes.axvline(floor, color="grey", ls=":", lw=1)
    axes.set_yticks(range(len(lines)), lines, fontsize=7)
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.grid(axis="y", lw=0.3)
    axes.set_xlim(-0.05, 1.05)
    axes.set_xlabel("SSIM after the best brightness and contrast, 95 % interval")
    _legend(figure, axes)
    figure.savefig(file, dpi=110)
    return True


def fails(own: pandas.DataFrame) -> pandas.Series:
    """Tells with which victims an attack failed, which says nothing for a defence."""
    return own["outcome"].astype(str).isin(FAILED)


def _draw_mark(axes, y: float, attacker: str, own: pandas.DataFrame) -> None:
    mark, colour = MARKS[attacker]
    found = finite_interval(own, SCORE)
    if found is None:  # nothing to place
        return
    failed = fails(own).mean() > 0.5
    axes.plot([found.low, found.high], [y, y], color=colour, lw=0.8)
    inside = "white" if failed else colour
    axes.plot(found.estimate, y, mark, ms=4, color=colour, mfc=inside, mew=0.9)


def _legend(figure, axes) -> None:
    for attacker, (mark, colour) in MARKS.items():
        axes.plot([], [], mark, ms=4, color=colour, label=attacker)
    axes.plot([], [], "o", ms=4, color="black", mfc="white", label="mostly failed")
    axes.plot([], [], ":", color="grey", lw=1, label="best floor, by the truth")
    figure.legend(loc="outside upper center", ncols=3, fontsize=7, frameon=False)


def best_floor(rows: Rows) -> float:
    """Finds the mean score of the floor that leaks most."""
    return max(own[SCORE].mean() for own in floors(rows).values())


def draw_strengths(contests: Iterable[Contest], rows: Rows, file: Path) -> bool:
    """Draws how many are recovered by who knows the defence, at its three strengths.

    Of several attackers that is the one who recovers most, which is chosen by the
    truth; the number behind the stroke counts its victims with which the attack failed.

    Returns:
      Whether there was anything to draw.
    """
    found: dict[str, dict[int, tuple[int, int, int]]] = {}
    for contest in contests:
        own = own_rows(rows[contest.method], contest.arm)
        at = write_strengths(contest.defence)
        if contest.attacker not in KNOWING or len(at) < len(STRENGTHS) or own.empty:
            continue
        outcomes = own["outcome"].astype(str)
        right, failed = outcomes.isin(RIGHT).sum(), outcomes.isin(FAILED).sum()
        line = found.setdefault(contest.defence, {})
        place = at.index(contest.combination)
        line[place] = max(line.get(place, (-1, 0, 0)), (right, -failed, len(own)))
    if not found:
        return False
    size = (6.5, 1.2 + 0.24 * len(found))
    figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    shares = np.full((len(found), len(STRENGTHS)), np.nan)
    for y, line in enumerate(found.values()):
        for x, (right, failed, count) in line.items():
            shares[y, x] = right / count
            dark = right > 0.6 * count
            text = f"{right} / {-failed}"
            colour = "white" if dark else "black"
            axes.text(x, y, text, ha="center", va="center", fontsize=7, color=colour)
    axes.imshow(shares, cmap="Reds", vmin=0, vmax=1, aspect="auto")
    axes.set_yticks(range(len(found)), map(_varied, found), fontsize=7)
    axes.set_xticks(range(len(STRENGTHS)), STRENGTHS)
    axes.xaxis.tick_top()
    figure.suptitle("recovered / attack failed, by who knows the defence", fontsize=9)
    figure.savefig(file, dpi=110)
    return True


def _varied(name: str) -> str:
    """Writes a defence with what it is varied in."""
    strengths = KINDS[name].strengths
    values = "; ".join(",".join(f"{v:g}" for v in at) for at in strengths.values())
    return f"{name} ({' '.join(strengths)} {values})"


def draw_costs(costs: Mapping[str, Mapping[str, Any]], file: Path) -> bool:
    """Draws seconds and bytes of a client's step, in multiples of the undefended.

    A darker mark is a stronger defence; seconds have their quartiles over rounds.

    Returns:
      Whether there was anything to draw.
    """
    lines = {name: write_strengths(name) for name in KINDS}
    lines = {n: at for n, at in lines.items() if any(each in costs for each in at)}
    if UNDEFENDED not in costs:
        return False
    dense = costs[UNDEFENDED]["dense"]
    size = (7.5, 1.2 + 0.2 * len(lines))
    figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
    seconds, nbytes = figure.subplots(1, 2, sharey=True)
    for y, at in enumerate(lines.values()):
        for n, combination in enumerate(at):
            cost = costs.get(combination)
            if cost is None or "refused" in cost:
                continue
            place = y + 0.5 * ((n + 0.5) / len(at) - 0.5)
            shade = SHADES[n if len(at) > 1 else 1]
            quartiles = [cost["times_low"], cost["times_high"]]
            seconds.plot(quartiles, [place, place], color=shade, lw=0.8)
            seconds.plot(cost["times"], place, "o", ms=3, color=shade)
            share = max(cost["coded"] / dense, LEAST_SHARE)
            nbytes.plot(share, place, "o", ms=3, color=shade)
    seconds.axvline(2, color="grey", ls=":", lw=1)
    seconds.set_yticks(range(len(lines)), lines, fontsize=7)
    seconds.set_ylim(len(lines) - 0.4, -0.6)
    seconds.set_xlabel("seconds of a step (dotted: twice)", fontsize=8)
    nbytes.set_xlabel("bytes sent, coded", fontsize=8)
    for axes in (seconds, nbytes):
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        ticks = [tick for tick in TICKS if low <= tick <= high]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=7)
        axes.minorticks_off()
        axes.grid(axis="y", lw=0.3)
    figure.suptitle("A client's step, in multiples of the undefended", fontsize=9)
    figure.savefig(file, dpi=110)
    return True
