"""Options of an attack: numbers of a preset that a study sets otherwise."""

import functools
import inspect
from collections.abc import Mapping
from typing import Any

from kljax.attacks.presets import Preset
from kljax.core.registry import nearest

COMMON = ("steps", "restarts")  # fields of the configuration
RATES = ("learning_rate", "weight_rate")  # of a descent, which none of 0 or less is


def parse_options(
    texts: tuple[str, ...], attack: str, preset: Preset
) -> dict[str, Any]:
    """Reads ``name=value`` for an attack.

    Args:
      texts: as written.
      attack: its name, for errors.
      preset: of that name.

    Returns:
      {name: value}, of the type that the option's default has.

    Raises:
      ValueError: for what is no option of the attack, given twice, or of another type;
        and for a rate that is not above 0.
    """
    defaults, given = _defaults(preset), {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise ValueError(f"attack option {text!r}: write it as name=value")
        if name not in defaults:
            known = ", ".join(defaults) or "none"
            raise ValueError(
                f"attack_options: attack {attack!r} has no option {name!r}"
                f"{nearest(name, defaults)}; it has {known}"
            )
        if name in given:
            raise ValueError(f"attack option {name!r} is given twice")
        given[name] = _converted(text, value, type(defaults[name]))
        if name in RATES and not given[name] > 0:
            raise ValueError(f"attack option {text!r}: a rate must be above 0")
    return given


def split_options(
    options: Mapping[str, Any], preset: Preset
) -> tuple[dict[str, Any], dict[str, float]]:
    """Parts options into those of the program, and those that are its data."""
    dialled = {name: options[name] for name in preset.dials if name in options}
    return {k: v for k, v in options.items() if k not in dialled}, dialled


def without_dials(texts: tuple[str, ...], preset: Preset) -> list[str]:
    """Writes options as far as a compiled program depends on them."""
    names = (text.partition("=")[0] for text in texts)
    pairs = zip(texts, names, strict=True)
    return sorted(name if name in preset.dials else text for text, name in pairs)


def _defaults(preset: Preset) -> dict[str, Any]:
    """Lists the options that are numbers, words or switches, with their defaults."""
    called = preset.build
    while isinstance(called, functools.partial):
        called = called.func
    parameters = inspect.signature(called).parameters.values()
    return {
        one.name: one.default
        for one in parameters
        if one.kind is one.KEYWORD_ONLY
        and one.name not in COMMON
        and isinstance(one.default, (bool, int, float, str))
    }


def _converted(text: str, value: str, kind: type) -> Any:
    words = {"true": True, "false": False}
    try:
        if kind is bool:
            return words[value]
        number = kind(value)
    except (ValueError, KeyError):
        number = None
    if number is None or number != number or number in (float("inf"), -float("inf")):
        wanted = {bool: "true or false", int: "an integer", float: "a number"}[kind]
        raise ValueError(f"attack option {text!r}: expected {wanted}")
    return number
