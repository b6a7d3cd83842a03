"""Sentences, and rows, for people: what was found of them, and where it is wrong."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from kljax.core.tables import BETWEEN
from kljax.metrics.kinds import kind_named
from kljax.studies.scoring import Row

MOST = 6  # sentences that are listed


class Cell(NamedTuple):
    """A cell of a row of a table, as it is and as it was guessed."""

    name: str
    truth: str
    guess: str
    right: bool


def mark(
    spell: Callable[[np.ndarray], str], guess: np.ndarray, truth: np.ndarray
) -> str:
    """Writes a guess [T] with square brackets around the tokens that are wrong.

    >>> words = ["In", " the", " beginning", "s"]
    >>> mark(lambda ts: "".join(words[t] for t in ts), [0, 1, 1, 3], [0, 1, 2, 0])
    'In the [thes]'
    """
    written, wrong = "", False
    for place in np.flatnonzero(np.asarray(truth) >= 0):  # not in padding
        now = bool(guess[place] != truth[place])
        piece = spell(guess[: place + 1])[len(spell(guess[:place])) :]
        space = piece[: len(piece) - len(piece.lstrip())]
        if wrong and not now:
            written += "]"
        written += f"{space}[" if now and not wrong else space
        written += piece.lstrip()
        wrong = now
    return written + "]" * wrong


def sentence_lines(rows: list[Row], most: int = MOST) -> list[str]:
    """Lists the first sentences, or rows, of a study, and what each arm found of them.

    Args:
      rows: of a study, see `kljax.studies.scoring.score_rows`.
      most: sentences at most.

    Returns:
      A line for each sentence and each arm; none of a study of other inputs.
    """
    found: dict[tuple[int, int, str | None], list[Row]] = {}
    for row in rows:
        if row["text"] is not None and not row["arm"].startswith("floor/"):
            of_one = row["upload"], row["example"], row["input"]
            found.setdefault(of_one, []).append(row)
    lines = []
    for of_one in list(found.values())[:most]:
        lines.append(f"truth: {of_one[0]['text']}")
        lines += [f"{row['arm']}: {_marked(row)} ({_caption(row)})" for row in of_one]
    return lines


def cells_of(row: Mapping[str, Any]) -> list[Cell]:
    """Takes the text of a row of a table apart; nothing of other inputs."""
    right = row.get("cells_right")
    if right is None:
        return []
    sides = (row[column].split(BETWEEN) for column in ("text", "text_guess"))
    cells = []
    for truth, guess, sure in zip(*sides, right, strict=True):
        name, _, value = truth.partition("=")
        cells.append(Cell(name, value, guess.partition("=")[2], sure == "1"))
    return cells


def _marked(row: Row) -> str:
    """Writes what was found, with brackets around the cells that are wrong."""
    cells = cells_of(row)
    if not cells:
        return row["text_guess"]
    written = [(f"{cell.name}={cell.guess}", cell.right) for cell in cells]
    return BETWEEN.join(cell if sure else f"[{cell}]" for cell, sure in written)


def _caption(row: Row) -> str:
    kind = kind_named(row["kind"])
    return kind.caption(row[kind.primary])
