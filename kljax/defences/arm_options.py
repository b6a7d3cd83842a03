"""Options of an arm: the numbers that are written after a defence's name."""

import functools
import math
import re
from collections.abc import Mapping, Sequence

from kljax.core.checks import LARGEST
from kljax.core.registry import nearest
from kljax.defences.catalogue import Kind

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"


def read_options(name: str, kind: Kind, written: str) -> dict[str, float | str]:
    """Reads the options of a defence, in their order.

    Raises:
      ValueError: for an option that the defence has not, one that is written twice or
        not at all, and what is no number.
    """
    names = list(kind.options)
    if written and not names:
        raise ValueError(f"{name} has no options, drop '={written}'")
    there = f"its options are {', '.join(names)}"
    found: dict[str, float | str] = {}
    for place, item in enumerate(written.split(",") if written else ()):
        option, equals, number = item.rpartition("=")
        if equals and option not in names:
            raise ValueError(
                f"{name} has no option {option!r}{nearest(option, names)}; {there}"
            )
        if not equals:
            if place >= len(names):
                raise ValueError(f"{name} has no option for {item!r}; {there}")
            if place != len(found) or list(found) != names[:place]:
                raise ValueError(
                    f"{item!r} follows options of {name} that are written by name: "
                    f"write it by name, too; {there}"
                )
            option = names[place]
        if option in found:
            raise ValueError(f"option {option} of {name} is written twice")
        word = isinstance(kind.options[option], str)
        found[option] = (_word if word else _number)(name, option, number)
    missing = [n for n in names if n not in found and kind.options[n] is None]
    if missing:
        raise ValueError(
            f"option {missing[0]} of {name} has no default: write {name}="
            f"{','.join(f'{n}=NUMBER' for n in missing)}"
        )
    return {n: found.get(n, kind.options[n]) for n in names}


def with_fixed(kind: Kind, found: Mapping[str, float | str]) -> Kind:
    """Makes the defence whose options are data alone."""
    fixed = {name: found[name] for name in kind.fixed}
    left = {name: kind.options[name] for name in kind.options if name not in fixed}
    if not fixed:
        return kind
    return kind._replace(make=functools.partial(kind.make, **fixed), options=left)


def write_fixed(kind: Kind, found: Mapping[str, float | str]) -> str:
    """Writes the options that are no data, ``[OPTION=VALUE,...]``; '' for none."""
    if not kind.fixed:
        return ""
    values = (found[name] for name in kind.fixed)
    words = (value if isinstance(value, str) else f"{value:g}" for value in values)
    pairs = zip(kind.fixed, words, strict=True)
    return f"[{','.join(f'{name}={word}' for name, word in pairs)}]"


def _word(name: str, option: str, written: str) -> str:
    if not written:
        raise ValueError(f"option {option} of {name} must be a word, got nothing")
    return written


def _number(name: str, option: str, written: str) -> float:
    try:
        value = float(written)
    except ValueError:
        value = math.nan
    if not abs(value) <= LARGEST:
        raise ValueError(
            f"option {option} of {name} must be a finite number, got {written!r}"
        )
    return value


def spell_numbers(text: str) -> str:
    """Writes the numbers of an arm in one way: ``.1`` and ``0.10`` as ``0.1``."""
    return re.sub(
        rf"(?<=[=,]){NUMBER}(?=[,+/@]|$)",
        lambda found: repr(float(found[0])).removesuffix(".0"),
        text,
    )


def check_spelled_once(arms: Sequence[str]) -> None:
    """Refuses arms that differ in how their numbers are written alone.

    Raises:
      ValueError: with both.
    """
    spelled: dict[str, str] = {}
    for arm in arms:
        other = spelled.setdefault(spell_numbers(arm), arm)
        if other != arm:
            raise ValueError(f"arms {other!r} and {arm!r} are the same: leave one out")
