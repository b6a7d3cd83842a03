"""Checks of configurations: each names the field and what would be right."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax

from kljax.mapping import Layout


def freeze(config: Any, names: tuple[str, ...]) -> None:
    # From config.json they come as lists and a dictionary.
    for name in names:
        value = getattr(config, name)
        if isinstance(value, str):
            raise ValueError(f"{name} must be a tuple, got {value!r}")
        object.__setattr__(config, name, tuple(value))
    if isinstance(config.layout, dict):
        object.__setattr__(config, "layout", Layout(**config.layout))


def whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def check_whole(config: Any, limits: Mapping[str, int]) -> None:
    for name, least in limits.items():
        value = getattr(config, name)
        if not whole(value) or value < least:
            raise ValueError(f"{name} must be an integer >= {least}, got {value!r}")


def given(config: Any, name: str) -> bool:
    return getattr(config, name) != default(type(config), name)


def default(kind: type, name: str) -> Any:
    """Looks up the default of a field."""
    return next(f.default for f in dataclasses.fields(kind) if f.name == name)


def check_choice(config: Any, name: str, legal: tuple[str, ...]) -> None:
    if getattr(config, name) not in legal:
        raise ValueError(
            f"{name} must be {' or '.join(map(repr, legal))}, got "
            f"{getattr(config, name)!r}"
        )


def check_precision(precision: str) -> None:
    try:
        jax.default_matmul_precision(precision)
    except ValueError as error:
        raise ValueError(f"precision={precision!r}: {error}") from None


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
        raise ValueError(f"{name} must be a number {least}{most}, got {value!r}")


def check_rounds(name: str, numbers: tuple[int, ...], most: int | None) -> None:
    for number in numbers:
        if not whole(number) or number < 0 or (most is not None and number > most):
            end = "" if most is None else f" to {most}"
            raise ValueError(f"{name} holds {number!r}: give rounds from 0{end}")
    if list(numbers) != sorted(set(numbers)):
        raise ValueError(f"{name} must ascend without repetition, got {numbers}")
