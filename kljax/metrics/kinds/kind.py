"""What has to be said of a kind of input before guesses at it can be scored."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import numpy as np

Scores: TypeAlias = dict[str, np.ndarray]  # by column, each [n]
Having: TypeAlias = tuple[list[int], Scores]  # places of the inputs that have a floor
Row: TypeAlias = dict[str, Any]


class Kind(NamedTuple):
    """How inputs of one kind are compared, and when one counts as recovered.

    Letters: n inputs, M of the victims; spec is their `kljax.core.inputs.InputSpec`.

    Attributes:
      score: ``(guesses [n, ...], truths [n, ...], spec) -> Scores``, each a column of
        `kljax.metrics.COLUMNS`.
      primary: of these columns the one that a gallery shows; higher is nearer.
      caption: its value in words.
      reference: ``(inputs [n, ...], labels [n], indices [n], spec) -> reference``: a
        sample that is known to the attacker, from which floors are made.
      floors: names of what is reached without any gradient, in order.
      make_floors: ``(input, label, index, reference, seed) -> {name: input}``; what
        cannot be made of the reference is left out.
      best_floors: ``(truths [M, ...], floors of each [M], {name: Having}) -> Scores``,
        columns that say of every input what its best floor reaches.
      success: ``row -> bool``, by convention.
      success_words: what that is called.
      reading: how outcomes and floors are read, in Markdown.
      outcome: ``(row, matching_loss, loss_floor, finite) -> str``, one of
        `kljax.metrics.OUTCOMES`; the row has all scores and best floors.
      noun: what one input is called.
      success_share: inputs that succeed, in the plural: the share of what a rate is.
      mark: ``(guess, truth, spec) -> str``: a guess as text, with square brackets
        around what is wrong; None where `InputSpec.spell` of its parts says it.
      meanings: what reports say of success, floors and outcomes: name -> meaning. What
        is not there means what `kljax.metrics.column_table` says of every kind.
    """

    score: Callable[..., Scores]
    primary: str
    caption: Callable[[float], str]
    reference: Callable[..., Any]
    floors: tuple[str, ...]
    make_floors: Callable[..., dict[str, np.ndarray]]
    best_floors: Callable[..., Scores]
    success: Callable[[Row], bool]
    success_words: str
    reading: str
    outcome: Callable[[Row, float | None, float | None, bool], str]
    noun: str = "example"
    success_share: str = "examples that succeed"
    mark: Callable[..., str] | None = None
    meanings: Mapping[str, str] = MappingProxyType({})
