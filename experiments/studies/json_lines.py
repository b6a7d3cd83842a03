"""Results that are added to a file line by line, and their intervals in words."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np


def read_lines(path: Path) -> list[dict]:
    """Reads what is finished."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def add_lines(path: Path, lines: Iterable[dict]) -> None:
    """Adds what is finished; what JSON has no form for is written as it prints."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for line in lines:
            print(json.dumps(line, default=str), file=file)


def write_interval(found) -> str:
    """Writes an interval of a share."""
    if np.isnan(found.low):
        return f"{found.estimate:.0%}"
    return f"{found.estimate:.0%} [{100 * found.low:.0f} to {100 * found.high:.0f}]"
