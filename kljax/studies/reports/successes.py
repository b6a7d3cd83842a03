"""Success and SSIM with floors and outcomes, as tables of curves show them."""

from typing import Any

from kljax.metrics import COLUMNS
from kljax.studies.reports.estimates import Estimate
from kljax.studies.reports.tables import Entry
from kljax.studies.reports.values import known
from kljax.studies.reports.verdicts import Outcomes

HEADER = (
    f"{COLUMNS['success'].heading} [95 %]",
    "floor",
    f"{COLUMNS['ssim'].heading} [95 %]",
    "floor of SSIM",
    " / ".join(Outcomes._fields),
)


def success_entries(
    success: Estimate, ssim: Estimate, outcomes: Outcomes
) -> tuple[Entry, ...]:
    """Writes the places below `HEADER`."""
    return (
        Entry(success.text(), known(success.mean), ("rate", success)),
        Entry(success.floor_text()),
        Entry(ssim.text(), known(ssim.mean)),
        Entry(ssim.floor_text()),
        Entry(outcomes.text(), outcomes.recovered, ("outcomes", outcomes)),
    )


def success_record(success: Estimate, ssim: Estimate) -> dict[str, Any]:
    """Makes the CSV columns."""
    return {
        "victims": success.n,
        "success": known(success.mean),
        "low": known(success.interval.low),
        "high": known(success.interval.high),
        "floor": success.floor.name if success.floor else None,
        "floor_success": success.floor.mean if success.floor else None,
        "ssim": known(ssim.mean),
        "ssim_low": known(ssim.interval.low),
        "ssim_high": known(ssim.interval.high),
        "ssim_floor": ssim.floor.name if ssim.floor else None,
        "ssim_floor_mean": ssim.floor.mean if ssim.floor else None,
    }
