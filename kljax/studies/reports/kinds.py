"""Kinds of inputs that a study has, told by its rows, and what they are called."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow.compute

from kljax.metrics import COLUMNS, Column
from kljax.metrics.kinds import KINDS, Kind, kind_named
from kljax.studies.store import Study

# Of a kind whose module is not where its report is written, there is success.
NAMELESS = Kind(
    **dict.fromkeys(("score", "reference", "make_floors", "best_floors", "outcome")),
    primary="success",
    caption=lambda success: "success" if success else "no success",
    floors=(),
    success=bool,
    success_words=COLUMNS["success"].heading,
    reading="",
)


def kinds_of(study: Study) -> tuple[str, ...]:
    """Names the kinds, in the order of `KINDS`; without rows it is taken for images."""
    columns = {
        "kind": study.rows["kind"],
        "text": study.rows["text"].is_valid(),
    }
    table = pyarrow.table(columns).group_by(["kind", "text"]).aggregate([])
    found = {_kind(row["kind"], row["text"]) for row in table.to_pylist()}
    known = [kind for kind in KINDS if kind in found]
    return (*known, *sorted(found.difference(known))) or ("image",)


def kind_of(row: Mapping[str, Any]) -> str:
    """Names the kind of a row."""
    return _kind(row.get("kind"), row.get("text") is not None)


def _kind(name: str | None, written: bool) -> str:
    """Names the kind of a row; before it said so, sentences had their text."""
    return name or ("text" if written else "image")


def find_words(kind: str) -> Kind:
    """Finds what is said of a kind, whose module need not be there."""
    try:
        return kind_named(kind)
    except ValueError:
        return NAMELESS


def default_value(kinds: Sequence[str]) -> str:
    """Chooses what tables are about: the primary score, or what all kinds have."""
    return find_words(kinds[0]).primary if len(kinds) == 1 else "success"


def success_words(kinds: Sequence[str]) -> str:
    """Says what success is, in the head of a column."""
    return " or ".join(find_words(kind).success_words for kind in kinds)


def success_share(kinds: Sequence[str]) -> str:
    """Says of what a rate of success is the share."""
    return " or ".join(find_words(kind).success_share for kind in kinds)


def noun(kinds: Sequence[str]) -> str:
    """Says what one input is called."""
    return find_words(kinds[0]).noun if len(kinds) == 1 else "example"


def primaries(kinds: Sequence[str]) -> list[Column]:
    """Lists the primary score of each kind."""
    return [COLUMNS[find_words(kind).primary] for kind in kinds]
