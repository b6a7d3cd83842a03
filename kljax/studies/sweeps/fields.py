"""Fields: what a sweep file may set, and how its values are written.

They are those of `kljax.LeakConfig`. In place of `arms` stands `arm`: a cell has
one. `layout` is missing, for it is the machine's affair.
"""

import types
import typing
from typing import Any

from kljax.core.registry import nearest
from kljax.parallel import Layout
from kljax.studies.config import LeakConfig

# A layout of its own: the backend must not be asked for before processes have met.
DEFAULTS = LeakConfig(layout=Layout())
_HINTS = typing.get_type_hints(LeakConfig)
FIELDS: dict[str, Any] = {"arm": str} | {
    name: hint for name, hint in _HINTS.items() if name not in ("arms", "layout")
}
# What is written in the file instead of a field that a cell cannot have.
_INSTEAD = {
    "arms": "a cell has one arm: write arm, as an axis or a fixed value",
    "layout": "it changes speed alone: give it to the run, not to the sweep",
}
_WORDS = {
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "true or false",
}


def check_field(place: str, name: str) -> None:
    """Refuses what is no field of a sweep.

    Args:
      place: section of the file, for the error.
      name: of the field.

    Raises:
      ValueError: with the nearest field.
    """
    if name in _INSTEAD:
        raise ValueError(f"{place} {name}: {_INSTEAD[name]}")
    if name not in FIELDS:
        raise ValueError(f"{place} {name}: no such field{nearest(name, FIELDS)}")


def check_value(place: str, name: str, value: Any) -> Any:
    """Checks the type of a value and brings it into the form the configuration has.

    Args:
      place: section of the file, for the error.
      name: of a field.
      value: as the file has it. A whole number will do for any number, and a string
        for a list of one.

    Raises:
      ValueError: for a value of another type, or none of the choices.
    """
    check_size(f"{place} {name}", value)
    kind = _kind(FIELDS[name])
    if typing.get_origin(kind) is typing.Literal:
        choices = typing.get_args(kind)
        if value not in choices:
            near = nearest(value, choices) if isinstance(value, str) else ""
            raise ValueError(
                f"{place} {name}: expected {' or '.join(map(repr, choices))}, got "
                f"{value!r}{near}"
            )
        return value
    if typing.get_origin(kind) is tuple:
        values = [value] if isinstance(value, str) else value
        listed = isinstance(values, (list, tuple))
        if not listed or not all(isinstance(v, str) for v in values):
            raise ValueError(
                f"{place} {name}: expected a list of strings, got {value!r}"
            )
        return tuple(values)
    value = in_floats(name, value)
    if type(value) is not kind:
        raise ValueError(f"{place} {name}: expected {_WORDS[kind]}, got {value!r}")
    return value


def check_size(place: str, value: Any) -> None:
    """Refuses integers that no field can hold; TOML knows 64 bits, too.

    Raises:
      ValueError: with their size.
    """
    if isinstance(value, int) and value.bit_length() > 63:
        raise ValueError(
            f"{place}: an integer of {value.bit_length()} bits; at most 63 and a sign"
        )


def in_floats(name: str, value: Any) -> Any:
    """Writes a number of a field that holds any number as a float: 1 is 1.0 there."""
    if _kind(FIELDS.get(name)) is float and type(value) is int:
        return float(value)
    return value


def label(value: Any) -> str:
    """Writes a value of a field as the name of a point; ``default`` if there is none.

    Lists become their elements with commas between.
    """
    if value is None or value == ():
        return "default"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return ",".join(value)
    return str(value)


def _kind(hint: Any) -> Any:
    """Takes the None out of ``kind | None``."""
    if isinstance(hint, types.UnionType):
        return next(kind for kind in typing.get_args(hint) if kind is not type(None))
    return hint
