"""The table of victims that have a page."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from kljax.studies.reports.gallery import IMAGES
from kljax.studies.reports.tables import Entry, Table
from kljax.studies.reports.victims import FOLDER, Victim


def victims_table(victims: Sequence[Victim]) -> Table:
    """Tables the victims that have a page, with a link to each."""
    scored = victims[0].scored if victims else ""
    labelled = any(label is not None for one in victims for label in one.labels)
    header = (
        "victim",
        *(["label"] if labelled else []),
        "recovered",
        f"highest {scored}, by the truth",
        "best floor",
    )
    records = [_record(one) for one in victims]
    lines = []
    for one, record in zip(victims, records, strict=True):
        tries = sum(len(attempt.scores) for attempt in one.attempts)
        best, floor = record["best_score"], record["best_floor_score"]
        lines.append(
            (
                Entry(one.name, link=f"{FOLDER}/{one.page}.html"),
                *([Entry(record["labels"])] if labelled else []),
                Entry(f"{record['recovered']} of {tries}", record["recovered"]),
                Entry(_with_name(best, record["best_attempt"]), best),
                Entry(_with_name(floor, record["best_floor"]), floor),
            )
        )
    return Table(
        "victims", f"Victims that have a page: {len(victims)}", header, lines, records
    )


def _with_name(score: float | None, name: str | None) -> str:
    return "-" if score is None else f"{score:.3f}\n{name}"


def _record(victim: Victim) -> dict[str, Any]:
    means = {
        attempt.name: float(np.mean([s for s in attempt.scores if s is not None]))
        for attempt in victim.attempts
        if any(score is not None for score in attempt.scores)
    }
    best = max(means, key=means.get, default=None)
    floor = max(victim.floors, key=victim.floors.get, default=None)
    return {
        "victim": victim.index,
        "where": victim.where,
        "upload": victim.upload,
        "labels": ", ".join(str(label) for label in victim.labels[:IMAGES]),
        "attempts": len(victim.attempts),
        "recovered": sum(attempt.recovered for attempt in victim.attempts),
        "best_score": means.get(best),
        "best_attempt": best,
        "best_floor_score": victim.floors.get(floor),
        "best_floor": floor,
        "page": f"{FOLDER}/{victim.page}.html",
    }
