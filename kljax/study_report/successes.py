"""Success with its floor and the outcomes behind it, as tables of curves show it."""

from typing import Any

from kljax.study_report.estimates import Estimate
from kljax.study_report.tables import Entry
from kljax.study_report.values import VALUES, known
from kljax.study_report.verdicts import Outcomes

HEADER = (f"{VALUES['success'].words} [95 %]", "floor", " / ".join(Outcomes._fields))


def success_entries(success: Estimate, outcomes: Outcomes) -> tuple[Entry, ...]:
    """Writes the places below `HEADER`."""
    return (
        Entry(success.text(), known(success.mean), ("rate", success)),
        Entry(success.floor_text()),
        Entry(outcomes.text(), outcomes.recovered, ("outcomes", outcomes)),
    )


def success_record(success: Estimate) -> dict[str, Any]:
    """Makes the CSV columns."""
    return {
        "victims": success.n,
        "success": known(success.mean),
        "low": known(success.interval.low),
        "high": known(success.interval.high),
        "floor": success.floor.name if success.floor else None,
        "floor_success": success.floor.mean if success.floor else None,
    }
