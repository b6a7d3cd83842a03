"""Convergence: how far searches were after so many evaluations.

A curve is the middle of a pool's victims, each with the best candidate it had by then:
what the attacker would have returned. The score beside it is known to the scorer alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from kljax.attacks.presets import PRESETS
from kljax.core.files import DamagedFile
from kljax.metrics import COLUMNS, Column
from kljax.studies import store
from kljax.studies.convergence import read_convergence
from kljax.studies.reports.axes import Axis, arm_axis
from kljax.studies.reports.figures import Figure, Style, draw_panels
from kljax.studies.reports.pools import Pool
from kljax.studies.reports.tables import at_words
from kljax.studies.reports.values import numbers
from kljax.studies.store import Study

MOST = 100  # pools whose files are read
QUARTILES = (50, 25, 75)  # median, and what is around it
LOSS = "own loss"


class Curve(NamedTuple):
    """Values after so many evaluations: of the victims of a pool, or of one victim.

    Attributes:
      arm: whose line it is.
      where: of the other axes, in words; curves of one place share a panel.
      evaluations: [P] of the restart that is returned.
      loss: [3, P] median and quartiles of the attacker's own loss; [1, P] of one
        victim.
      score: the same of the primary score; None where no snapshots are kept.
      scored: which score that is.
      floor: score of the best floor, in the middle of a pool; None where there is none.
    """

    arm: str
    where: str
    evaluations: np.ndarray
    loss: np.ndarray
    score: np.ndarray | None
    scored: Column
    floor: float | None = None


class Recorded(NamedTuple):
    """What the searches of a study recorded on their way.

    Attributes:
      curves: of every pool whose cells have kept any.
      notes: why the others have none, a sentence for each attack.
    """

    curves: list[Curve]
    notes: list[str]


def make_convergence(
    study: Study, pools: Sequence[Pool], axes: dict[str, Axis]
) -> Recorded:
    """Makes the curves of a study; cells without reconstructions are passed over.

    Of several inputs there are curves of the primary one alone. Victims whose loss is
    not finite at a point are left out there.
    """
    arm = arm_axis(axes).name
    curves, without = [], []
    for pool in pools[:MOST]:
        if not len(pool.rows) or pool.input != pool.first_row.get("input"):
            continue
        kept = list(_kept(study, pool))
        if not kept:
            continue
        found = [one for one in map(read_convergence, kept) if one is not None]
        # Cells of a pool differ in their seed; one may have kept other points.
        found = [
            one for one in found if one.losses.shape[1:] == found[0].losses.shape[1:]
        ]
        if not found:
            without.append(pool)
            continue
        scores = [one.scores for one in found]
        scored = all(one is not None for one in scores)
        curves.append(
            Curve(
                pool.point[arm],
                at_words({a: b for a, b in pool.point.items() if a != arm}),
                found[0].evaluations[0],
                quartiles(np.concatenate([one.losses for one in found])),
                quartiles(np.concatenate([_by_image(one) for one in scores]))
                if scored
                else None,
                COLUMNS[pool.primary],
                _best_floor(pool),
            )
        )
    attacks = dict.fromkeys(
        cell["config"]["attack"] for pool in without for cell in pool.cells
    )
    return Recorded(curves, [no_curve(attack) for attack in attacks])


def no_curve(attack: str) -> str:
    """Says in a sentence why an attack has no curve, by its name."""
    known = PRESETS.get(attack)
    why = known.no_curve if known is not None else ""
    default = "recorded no losses on its way, as the drivers of kljax do"
    return f"{attack} has no curve: it {why or default}."


def _best_floor(pool: Pool) -> float | None:
    """Finds the highest median of the primary score among floors; None without any."""
    scores = [numbers(rows, pool.primary) for rows in pool.floors.values()]
    finite = [found[np.isfinite(found)] for found in scores]
    return max(
        (float(np.median(found)) for found in finite if len(found)), default=None
    )


def quartiles(values: np.ndarray) -> np.ndarray:
    """Computes median and quartiles [3, P] of the finite ones of [N, P]."""
    finite = np.where(np.isfinite(values), values, np.nan)
    known = ~np.all(np.isnan(finite), axis=0)
    found = np.full((len(QUARTILES), values.shape[1]), np.nan)
    found[:, known] = np.nanpercentile(finite[:, known], QUARTILES, axis=0)
    return found


def _by_image(scores: np.ndarray) -> np.ndarray:
    """Lists [N, P, B] as [N B, P]."""
    return np.moveaxis(scores, 2, 1).reshape(-1, scores.shape[1])


def _kept(study: Study, pool: Pool) -> Iterator[Mapping[str, np.ndarray]]:
    for cell in pool.cells:
        try:
            arrays = store.read_reconstructions(study, cell["id"])
        except DamagedFile:  # the gallery names it
            continue
        if arrays is not None:
            yield arrays


def draw_convergence(
    curves: Sequence[Curve], arms: Sequence[str], name: str = "convergence"
) -> Figure | None:
    """Draws loss, and score where it is known, against evaluations; a line per arm.

    None without curves.
    """
    panels: dict[str, tuple[bool, list[Curve]]] = {}
    for curve in curves:
        panels.setdefault(_panel(LOSS, curve), (True, []))[1].append(curve)
        if curve.score is not None:
            title = _panel(curve.scored.heading, curve)
            panels.setdefault(title, (False, []))[1].append(curve)
    if not panels:
        return None
    of_one = len(curves[0].loss) == 1
    middle = "" if of_one else ", in the middle of the victims"
    around = "" if of_one else ", shaded from the lower to the upper quartile"
    return draw_panels(
        name,
        f"What searches have found after so many evaluations{middle}",
        f"The attacker's own loss of the best candidate so far{around}, and its score "
        "where snapshots were kept, beside the best floor, against evaluations; one "
        "line per arm.",
        panels,
        tuple(arms),
        _draw_panel,
    )


def _panel(what: str, curve: Curve) -> str:
    return f"{what}, {curve.where}" if curve.where else what


def _draw_panel(panel: tuple[bool, list[Curve]], style: Style, axis) -> None:
    of_loss, curves = panel
    for curve in curves:
        values = curve.loss if of_loss else curve.score
        kept = style.arms[curve.arm]
        spent = curve.evaluations
        marker = {"marker": "o", "markersize": 2.5} if len(spent) <= 20 else {}
        axis.plot(spent, values[0], label=curve.arm, **marker, **kept)
        if len(values) > 1:
            axis.fill_between(
                spent, *values[1:], color=kept["color"], alpha=0.13, linewidth=0
            )
    floors = [curve.floor for curve in curves if curve.floor is not None]
    if floors and not of_loss:
        axis.axhline(
            max(floors), color=style.faint, linewidth=2.5, alpha=0.6, label="best floor"
        )
    losses = np.concatenate([curve.loss for curve in curves], axis=None)
    if of_loss and not np.any(losses <= 0):  # false for NaN
        axis.set_yscale("log")
    scored = curves[0].scored
    if not of_loss and (scored.name.startswith("ssim") or scored.is_share):
        axis.set_ylim(-0.03, 1.03)
    axis.set_xlabel("evaluations")
    axis.set_ylabel(LOSS if of_loss else scored.heading)
