"""Values that no option was made for, by what kind the option is."""

import dataclasses
import math
import typing

TEXTS = (
    "",
    "[/x]",
    "\udcff",
    "a\0b",
    "x" * 300,
    "missing:thing",
    "json:loads",
    "json:nothing",
    "sys:maxsize",
    "file/below",
    "../..",
    "/",
    ":",
    "a:b:c",
    "=",
    "=nan",
    "shards=0",
    "dirichlet=inf",
    "by-size=nan,1,1",
    "gaussian-noise=1e400",
    "gaussian-noise=nan",
    "none/known",
    "none+none+",
    "labels=",
    "examples=3",
    "Übung 図",
)
WHOLE = (-1, 0, 2**31 - 1, 2**31, 2**63, 2**64, 10**400, 1.5, True, "3", None)
NUMBERS = (
    -1.0,
    math.nan,
    math.inf,
    -math.inf,
    1e300,
    1e38,
    5e-324,
    10**400,
    True,
    "3",
    None,
)
OTHERS = (None, 0, "yes", (), object())


def values(hint, default) -> tuple:
    """Lists hostile values for an option of a type."""
    kinds = set(typing.get_args(hint)) or {hint}
    if typing.get_origin(hint) is tuple:
        inner = typing.get_args(hint)[0]
        found = values(inner, default[0] if default else "none")
        return ((), *((value,) for value in found), tuple(default) * 2, "none", 3, None)
    if str in kinds:
        near = (default[:-1], f"{default}x") if isinstance(default, str) else ()
        return (*TEXTS, *near, 3, b"none", ["none"])
    if int in kinds and bool not in kinds:
        return WHOLE
    if float in kinds:
        return NUMBERS
    return (*TEXTS[:4], *OTHERS)


def cases(config: type):
    """Lists (name, value) for every option of a configuration but its layout."""
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        if field.name == "layout":
            continue
        for value in values(hints[field.name], field.default):
            # Any folder may have prepared data, and embedded data need none.
            if field.name != "data_dir" or value not in TEXTS[5:]:
                yield field.name, value
