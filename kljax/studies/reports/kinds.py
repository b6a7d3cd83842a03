"""Kinds of inputs that a study has, told by its rows, and what they are called."""

from collections.abc import Sequence

import pyarrow.compute

from kljax.metrics import COLUMNS, Column
from kljax.metrics.kinds import KINDS
from kljax.studies.store import Study


def kinds_of(study: Study) -> tuple[str, ...]:
    """Names the kinds, in the order of `KINDS`; without rows it is taken for images.

    A row is of a sentence if it has one: rows of before there was text have none.
    """
    written = study.rows["text"].is_valid()
    found = set(pyarrow.compute.unique(written).to_pylist())
    return tuple(kind_of(written=is_text) for is_text in sorted(found)) or ("image",)


def kind_of(*, written: bool) -> str:
    """Names the kind of a row, by whether it has a true sentence."""
    return "text" if written else "image"


def default_value(kinds: Sequence[str]) -> str:
    """Chooses what tables are about: the primary score, or what all kinds have."""
    return KINDS[kinds[0]].primary if len(kinds) == 1 else "success"


def success_words(kinds: Sequence[str]) -> str:
    """Says what success is, in the head of a column."""
    return " or ".join(KINDS[kind].success_words for kind in kinds)


def success_share(kinds: Sequence[str]) -> str:
    """Says of what a rate of success is the share."""
    return " or ".join(KINDS[kind].success_share for kind in kinds)


def noun(kinds: Sequence[str]) -> str:
    """Says what one input is called."""
    return KINDS[kinds[0]].noun if len(kinds) == 1 else "example"


def primaries(kinds: Sequence[str]) -> list[Column]:
    """Lists the primary score of each kind."""
    return [COLUMNS[KINDS[kind].primary] for kind in kinds]
