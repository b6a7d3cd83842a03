"""Ambiguous images of a leakage study, held against the arm without a defence.

A gradient that is matched by a wrong image is evidence for a defence only where the
same upload gives its image away undefended.
"""

from typing import Any

from kljax.studies.scoring import Row

UNDEFENDED = "none"


def count_recovered_undefended(rows: list[Row], arm: str) -> int | None:
    """Counts the ambiguous images of an arm that are recovered without a defence."""
    outcomes = {
        (row["upload"], row["example"], row["input"]): row["outcome"]
        for row in rows
        if row["arm"] == UNDEFENDED
    }
    if not outcomes:
        return None
    return sum(
        outcomes[row["upload"], row["example"], row["input"]]
        in ("recovered", "recovered_affine")
        for row in rows
        if row["arm"] == arm and row["outcome"] == "ambiguous"
    )


def ambiguous_lines(summary: dict[str, Any]) -> list[str]:
    """Says of each arm what its ambiguous images show; nothing of an arm without."""
    lines = []
    for name, arm in summary["arms"].items():
        if "ambiguous_recovered_undefended" not in arm:
            continue
        text = f"{name}: {arm['outcomes']['ambiguous']} of {arm['n']} matched but wrong"
        recovered = arm["ambiguous_recovered_undefended"]
        if name == UNDEFENDED:
            text += ", without any defence"
        elif recovered is None:
            text += f"; no evidence for this arm without `{UNDEFENDED}` beside it"
        elif recovered:
            text += f"; evidence for this arm: `{UNDEFENDED}` recovers {recovered}"
        else:
            text += f"; no evidence for this arm: `{UNDEFENDED}` recovers none"
        lines.append(text)
    return lines
