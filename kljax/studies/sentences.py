"""Sentences, and rows, for people: what was found of them, and where it is wrong."""

import itertools
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from kljax.core.tables import BETWEEN
from kljax.metrics.kinds import kind_named
from kljax.studies.scoring import Row

MOST = 6  # sentences that are listed
FEWER = 3  # rows of a table that are written cell by cell


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


class Found(NamedTuple):
    """What one arm found of a sentence."""

    arm: str
    guess: str
    accuracy: float  # share of tokens that are right in their place


def list_sentences(
    rows: list[Row], most: int = MOST
) -> list[tuple[str, tuple[Found, ...]]]:
    """Lists the first sentences of a study, and what each arm found of them.

    Args:
      rows: of a study, see `kljax.studies.scoring.score_rows`.
      most: sentences at most.

    Returns:
      The truth of each, and what was found; nothing of a study of other inputs.
    """
    found: dict[tuple[int, int, str | None], list[Row]] = {}
    for row in rows:
        if row["kind"] == "text" and not row["arm"].startswith("floor/"):
            of_one = row["upload"], row["example"], row["input"]
            found.setdefault(of_one, []).append(row)
    return [
        (
            of_one[0]["text"],
            tuple(
                Found(row["arm"], row["text_guess"], row["token_accuracy"])
                for row in of_one
            ),
        )
        for of_one in list(found.values())[:most]
    ]


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


def list_cells(rows: list[Row], most: int = FEWER) -> list[dict[str, list[Cell]]]:
    """Lists the cells of the first rows of a table: arm -> cells, for each of them.

    Args:
      rows: of a study, of whatever inputs.
      most: rows of the table at most.

    Returns:
      Nothing of other inputs.
    """
    found: dict[tuple[int, int, str | None], dict[str, list[Cell]]] = {}
    for row in rows:
        cells = cells_of(row)
        if cells and not row["arm"].startswith("floor/"):
            of_one = row["upload"], row["example"], row["input"]
            found.setdefault(of_one, {})[row["arm"]] = cells
    return [*found.values()][:most]


def shares_by_column(rows: list[Row]) -> dict[str, dict[str, float]]:
    """Gives the share of right cells of each column of a table, by arm.

    Args:
      rows: of a study, of whatever inputs.

    Returns:
      arm -> column -> share, floors among the arms; nothing of other inputs.
    """
    right: dict[str, dict[str, list[bool]]] = {}
    for row in rows:
        for cell in cells_of(row):
            of_arm = right.setdefault(row["arm"], {})
            of_arm.setdefault(cell.name, []).append(cell.right)
    return {
        arm: {name: sum(cells) / len(cells) for name, cells in columns.items()}
        for arm, columns in right.items()
    }


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


def split_by_truth(guess: str, truth: str) -> list[tuple[str, bool]]:
    """Splits a guess into runs of words, and says of each whether it is right.

    Right are the words of the longest common subsequence, which ROUGE-L counts: in the
    order of the truth, wherever they stand. Case and punctuation say nothing, as in
    ROUGE. Of several as long, one whose words come first in the guess.

    >>> split_by_truth("And he the said,", "And he said")
    [('And he', True), ('the', False), ('said,', True)]
    """
    words, wanted = guess.split(), truth.split()
    ours, theirs = ([_plain(word) for word in side] for side in (words, wanted))
    longest = np.zeros((len(ours) + 1, len(theirs) + 1), int)
    for i, word in enumerate(ours, 1):
        for j, other in enumerate(theirs, 1):
            same = longest[i - 1, j - 1] + 1 if word == other else 0
            longest[i, j] = max(same, longest[i - 1, j], longest[i, j - 1])
    right, i, j = [False] * len(ours), len(ours), len(theirs)
    while i and j:
        if longest[i, j] == longest[i - 1, j]:
            i -= 1
        elif longest[i, j] == longest[i, j - 1]:
            j -= 1
        else:
            i, j = i - 1, j - 1
            right[i] = True
    runs = itertools.groupby(zip(words, right, strict=True), key=lambda pair: pair[1])
    return [(" ".join(word for word, _ in run), is_right) for is_right, run in runs]


def _plain(word: str) -> str:
    """Gives a word without case and punctuation; what is nothing else stays."""
    return re.sub(r"[^a-z0-9]", "", word.lower()) or word


def as_markdown(text: str) -> str:
    """Writes text for a place of a table: none of it is HTML, markup or a new cell."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return " ".join(re.sub(r"([\\`*_|~\[\]])", r"\\\1", text).split())


def bold_right(guess: str, truth: str) -> str:
    """Writes a guess for a place of a table, with the words that are right in bold."""
    return " ".join(
        f"**{as_markdown(words)}**" if right else as_markdown(words)
        for words, right in split_by_truth(guess, truth)
    )
