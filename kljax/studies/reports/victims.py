"""Victims: all that was tried on one upload, under every arm and by every attack.

Cells attack the same victim if they agree in all that says who the victims are, and
have the same truth at the same place. Nothing is chosen: victims come in their order.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kljax.core.files import DamagedFile
from kljax.metrics import COLUMNS
from kljax.studies import store
from kljax.studies.convergence import Convergence, read_convergence
from kljax.studies.reports.axes import WHO, Axis, arm_axis
from kljax.studies.reports.convergence import Curve, draw_convergence, no_curve
from kljax.studies.reports.figures import Figure
from kljax.studies.reports.gallery import (
    IMAGES,
    Shown,
    gather_uploads,
    of_input,
    show,
)
from kljax.studies.reports.pools import Pool
from kljax.studies.reports.strips import Snapshot, draw_strip
from kljax.studies.reports.tables import at_words
from kljax.studies.reports.values import known, numbers
from kljax.studies.store import Study

MOST = 64  # victims that have a page
FOLDER = "victims"  # beside the page of the study


class Attempt(NamedTuple):
    """One attack under one arm on a victim.

    Attributes:
      name: where it stands, in words.
      shown: of each example, truth and guess.
      facts: what rows say of the upload: name -> value in words.
      scores: primary score of each example; None where it is not finite.
      recovered: how many of the examples count as recovered.
      attack: by its name.
      curve: loss, and score, after so many evaluations; None where none was kept.
      strip: snapshots, the last is what was found; none where none are kept.
      frames: [P, B, H, W, C] all snapshots, for a moving picture; None as `strip`.
    """

    name: str
    shown: tuple[Shown, ...]
    facts: dict[str, str]
    scores: tuple[float | None, ...]
    recovered: int
    attack: str
    curve: Curve | None
    strip: tuple[Snapshot, ...]
    frames: np.ndarray | None


class Victim(NamedTuple):
    """A victim and all that was tried on it.

    Attributes:
      page: name of its files, without ending.
      index: of its first example in the dataset.
      where: what tells it from victims of other cells, in words; may be empty.
      upload: which of these victims it is, from 0.
      labels: of its examples; None where there are none.
      floors: name -> mean primary score, of what is reached without any gradient.
      scored: heading of the primary score.
      attempts: in the order of the report.
      arms: of the study, in order.
    """

    page: str
    index: int
    where: str
    upload: int
    labels: tuple[int | None, ...]
    floors: dict[str, float]
    scored: str
    attempts: tuple[Attempt, ...]
    arms: tuple[str, ...]

    @property
    def name(self) -> str:
        """Names it for people."""
        return f"victim {self.index}{f', {self.where}' if self.where else ''}"

    def draw_convergence(self) -> Figure | None:
        """Draws the curves of all attempts, beside the best floor; None without any."""
        best = max(self.floors.values(), default=None)
        curves = [a.curve._replace(floor=best) for a in self.attempts if a.curve]
        return draw_convergence(curves, self.arms)

    @property
    def no_curves(self) -> list[str]:
        """Says why attempts have no curve, a sentence for each attack."""
        attacks = dict.fromkeys(a.attack for a in self.attempts if a.curve is None)
        return [no_curve(attack) for attack in attacks]


class Victims(NamedTuple):
    """Victims that have a page.

    Attributes:
      shown: the first of them, `MOST` at most.
      left_out: how many more there are.
    """

    shown: tuple[Victim, ...]
    left_out: int


class _Begun(NamedTuple):
    """A victim whose attempts are being collected."""

    index: int
    who: dict[str, Any]
    upload: int
    labels: tuple[int | None, ...]
    floors: dict[str, float]
    scored: str
    attempts: list[Attempt]


def make_victims(study: Study, pools: Sequence[Pool], axes: dict[str, Axis]) -> Victims:
    """Collects what was tried on every victim whose reconstructions were kept.

    Of several inputs the primary one is shown.
    """
    begun: dict[tuple, _Begun] = {}
    left_out = set()
    for pool in pools:
        if not len(pool.rows) or pool.input != pool.first_row.get("input"):
            continue
        kept = _read(study, pool)
        own = of_input(pool, kept)
        configs = {cell["id"]: cell["config"] for cell in pool.cells}
        for (cell, place), rows in gather_uploads(pool, own).items():
            pictures = {name: own[cell][name][place] for name in ("truths", "images")}
            index = int(own[cell]["victim"][place])
            who = {name: configs[cell].get(name) for name in sorted(WHO)}
            key = (json.dumps(who), place, index, _digest(pictures["truths"]))
            if key not in begun:
                if len(begun) == MOST:
                    left_out.add(key)
                    continue
                labels = tuple(row["label"] for row in rows)
                floors = _floors(pool, cell, place)
                scored = COLUMNS[pool.primary].heading
                begun[key] = _Begun(index, who, place, labels, floors, scored, [])
            found = read_convergence(kept[cell])
            attempt = _attempt(pool, axes, rows, pictures, found, place)
            begun[key].attempts.append(attempt)
    arms = arm_axis(axes).labels
    varied = _varied([one.who for one in begun.values()])
    shown = [
        _finish(one, f"victim-{number:03}", varied, arms)
        for number, one in enumerate(begun.values())
    ]
    return Victims(tuple(shown), len(left_out))


def _read(study: Study, pool: Pool) -> dict[str, dict[str, np.ndarray]]:
    """Reads what was kept of the cells of a pool, by id."""
    kept = {}
    for cell in pool.cells:
        try:
            arrays = store.read_reconstructions(study, cell["id"])
        except DamagedFile:  # the gallery names it
            continue
        if arrays is not None:
            kept[cell["id"]] = arrays
    return kept


def _digest(truths: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(truths).tobytes()).hexdigest()


def _floors(pool: Pool, cell: str, place: int) -> dict[str, float]:
    """Finds the mean primary score of each floor on one upload."""
    found = {}
    for name, rows in pool.floors.items():
        own = rows[(rows["cell"] == cell) & (rows["upload"] == place)]
        values = numbers(own, pool.primary)
        values = values[np.isfinite(values)]
        if len(values):
            found[name] = float(values.mean())
    return found


def _varied(who: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names the fields in which victims of different cells differ."""
    names = who[0] if who else ()
    return [name for name in names if len({json.dumps(w[name]) for w in who}) > 1]


def _attempt(
    pool: Pool,
    axes: dict[str, Axis],
    rows: list[dict[str, Any]],
    pictures: dict[str, np.ndarray],
    found: Convergence | None,
    place: int,
) -> Attempt:
    arm = arm_axis(axes).name
    others = {a: b for a, b in pool.point.items() if a != arm}
    varied = {a: b for a, b in others.items() if len(axes[a].labels) > 1}
    name = pool.point[arm]
    scored = COLUMNS[pool.primary]
    curve, strip, frames = None, (), None
    if found is not None:
        spent = found.evaluations[place]
        score = None
        if found.scores is not None:
            score = _finite_means(found.scores[place])[None]
            of_images = pool.kind == "image"
            frames = found.snapshots[place] if of_images else None
            strip = draw_strip(spent, frames, score[0], scored) if of_images else ()
        loss = np.where(np.isfinite(found.losses[place]), found.losses[place], np.nan)
        curve = Curve(name, at_words(varied), spent, loss[None], score, scored)
    return Attempt(
        f"{name}, {at_words(varied)}" if varied else name,
        tuple(show("", row, pictures) for row in rows[:IMAGES]),
        _facts(rows[0]),
        tuple(known(row[pool.primary]) for row in rows),
        sum(row["outcome"] == "recovered" for row in rows),
        rows[0]["attack"],
        curve,
        strip,
        frames,
    )


def _finite_means(scores: np.ndarray) -> np.ndarray:
    """Computes the means [P] of the finite ones of [P, B]; NaN without any."""
    finite = np.isfinite(scores)
    count = finite.sum(1)
    total = np.where(finite, scores, 0).sum(1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


FACTS = (  # of a row: what an attack says of the whole upload
    "matching_loss",
    "matching_loss_at_truth",
    "evaluations",
    "label_strategy",
    "secret_strategy",
)


def _facts(row: Mapping[str, Any]) -> dict[str, str]:
    facts = {}
    for name in FACTS:
        if row.get(name) is not None:
            words = COLUMNS[name].heading.replace("_", " ")
            value = row[name]
            number = isinstance(value, float)
            facts[words] = COLUMNS[name].written(value) if number else str(value)
    return facts


def _finish(
    begun: _Begun, page: str, varied: Sequence[str], arms: Sequence[str]
) -> Victim:
    return Victim(
        page,
        begun.index,
        at_words({name: str(begun.who[name]) for name in varied}),
        begun.upload,
        begun.labels,
        begun.floors,
        begun.scored,
        tuple(begun.attempts),
        tuple(arms),
    )
