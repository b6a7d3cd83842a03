"""Success and score with floors and outcomes, as tables of curves show them."""

from collections.abc import Sequence
from typing import Any

from kljax.studies.reports.estimates import Estimate
from kljax.studies.reports.tables import Entry
from kljax.studies.reports.values import known
from kljax.studies.reports.verdicts import Outcomes


def success_header(
    successes: Sequence[Estimate], scores: Sequence[Estimate]
) -> tuple[str, ...]:
    """Writes the head of a table, one line of which has one success and one score."""
    success, score = (
        " or ".join(dict.fromkeys(estimated.value.heading for estimated in column))
        for column in (successes, scores)
    )
    return (
        f"{success} [95 %]",
        "floor",
        f"{score} [95 %]",
        f"floor of {score}",
        " / ".join(Outcomes._fields),
    )


def success_entries(
    success: Estimate, score: Estimate, outcomes: Outcomes
) -> tuple[Entry, ...]:
    """Writes the places below `success_header`."""
    return (
        Entry(success.text(), known(success.mean), ("rate", success)),
        Entry(success.floor_text()),
        Entry(score.text(), known(score.mean)),
        Entry(score.floor_text()),
        Entry(outcomes.text(), outcomes.recovered, ("outcomes", outcomes)),
    )


def names_of(scores: Sequence[Estimate]) -> list[str]:
    """Lists the scores of a table, each once."""
    return list(dict.fromkeys(score.value.name for score in scores))


def success_record(
    success: Estimate, score: Estimate, names: Sequence[str]
) -> dict[str, Any]:
    """Makes the CSV columns; of the scores of the table, `names`, a line has one."""
    record = {
        "victims": success.n,
        "success": known(success.mean),
        "low": known(success.interval.low),
        "high": known(success.interval.high),
        "floor": success.floor.name if success.floor else None,
        "floor_success": success.floor.mean if success.floor else None,
    }
    for name in names:
        its = score if score.value.name == name else None
        floor = its.floor if its else None
        record |= {
            name: known(its.mean) if its else None,
            f"{name}_low": known(its.interval.low) if its else None,
            f"{name}_high": known(its.interval.high) if its else None,
            f"{name}_floor": floor.name if floor else None,
            f"{name}_floor_mean": floor.mean if floor else None,
        }
    return record
