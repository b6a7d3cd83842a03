"""Checks of configurations: each names the field and what would be right."""

import dataclasses
import functools
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from kljax.core.registry import nearest

MOST = 2**31 - 1  # what an int32 of JAX holds
# JAX makes a random key of the lower 32 bits: larger seeds would repeat smaller ones.
MOST_OF = {"seed": 2**32 - 1}
LARGEST = float(np.finfo(np.float32).max)


def shown(value: Any) -> str:
    """Writes a value for an error, shortened if it is long."""
    if isinstance(value, int) and value.bit_length() > 64:
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


def check_kinds(config: Any) -> None:
    """Checks that each field is of the type it is declared to be.

    Numbers are left to `check_whole` and `check_number`, which know their ranges.

    Raises:
      ValueError: for a field of another type, and for text that is none: with a
        character that UTF-8 has not, or that ends a path.
    """
    for name, hint in _hints(type(config)).items():
        value, kinds = getattr(config, name), _members(hint)
        if value is None and type(None) in kinds:
            continue
        if kinds & {str, tuple[str, ...]}:
            texts = value if tuple[str, ...] in kinds else (value,)
            for text in texts:
                check_text(name, text)
        elif bool in kinds and not isinstance(value, bool):
            raise ValueError(f"{name} must be True or False, got {shown(value)}")
        elif any(typing.get_origin(kind) is typing.Literal for kind in kinds):
            legal = [c for kind in kinds for c in typing.get_args(kind)]
            check_choice(config, name, tuple(legal))


def check_text(name: str, value: Any) -> None:
    """Refuses what is no text, or no text that a file or a path can hold."""
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text, got {shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name}={shown(value)} is no text in UTF-8") from None
    if not value:
        raise ValueError(f"{name} is empty: leave it out, or say what it is")
    if "\0" in value:
        raise ValueError(f"{name}={shown(value)} holds a null character")


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _members(hint: Any) -> set[Any]:
    """Lists the kinds of ``kind | None``."""
    union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    return {*typing.get_args(hint)} if union else {hint}


def whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def check_whole(config: Any, limits: Mapping[str, int]) -> None:
    for name, least in limits.items():
        check_whole_number(name, getattr(config, name), least)


def check_whole_number(name: str, value: Any, least: int) -> None:
    """Refuses what is no integer, is below `least`, or is beyond what JAX counts with.

    Raises:
      ValueError: with the range.
    """
    if not whole(value) or value < least:
        raise ValueError(f"{name} must be an integer >= {least}, got {shown(value)}")
    most = MOST_OF.get(name, MOST)
    if value > most:
        raise ValueError(
            f"{name} must be an integer from {least} to {most}, got {shown(value)}"
        )


def given(config: Any, name: str) -> bool:
    return getattr(config, name) != default(type(config), name)


def default(kind: type, name: str) -> Any:
    """Looks up the default of a field."""
    return next(f.default for f in dataclasses.fields(kind) if f.name == name)


def check_choice(config: Any, name: str, legal: tuple[str, ...]) -> None:
    value = getattr(config, name)
    if value not in legal:
        hint = nearest(value, legal) if isinstance(value, str) else ""
        raise ValueError(
            f"{name} must be {' or '.join(map(repr, legal))}, got {shown(value)}{hint}"
        )


def check_precision(precision: str) -> None:
    try:
        jax.default_matmul_precision(precision)
    except ValueError as error:
        raise ValueError(f"precision={shown(precision)}: {error}") from None


def check_arms(arms: tuple[str, ...]) -> None:
    if not arms:
        raise ValueError("arms is empty: name at least one, such as 'none'")
    twice = sorted({arm for arm in arms if arms.count(arm) > 1})
    if twice:
        raise ValueError(f"arms {twice} are named more than once")


def check_number(
    config: Any, name: str, *, positive: bool = False, below: float = math.inf
) -> None:
    value = getattr(config, name)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 <= value < below or (positive and not value):
        least = "> 0" if positive else ">= 0"
        most = "" if below == math.inf else f" and < {below}"
        raise ValueError(f"{name} must be a number {least}{most}, got {shown(value)}")
    if positive and not np.float32(min(value, LARGEST)):
        raise ValueError(f"{name} must be a number > 0, and {value!r} is 0 in float32")
    if value > LARGEST:
        raise ValueError(
            f"{name} must be a number up to {LARGEST:.3g}, the largest of float32, got "
            f"{shown(value)}"
        )


def check_rounds(name: str, numbers: tuple[int, ...], most: int | None) -> None:
    most = MOST if most is None else most
    for number in numbers:
        if not whole(number) or not 0 <= number <= most:
            raise ValueError(
                f"{name} holds {shown(number)}: give rounds from 0 to {most}"
            )
    if list(numbers) != sorted(set(numbers)):
        raise ValueError(f"{name} must ascend without repetition, got {numbers}")


def is_concrete(number: Any) -> bool:
    """Tells whether Python can look at a number; at data of `jax.jit` it cannot."""
    return not isinstance(number, jax.core.Tracer)
