"""Names for objects: what a configuration, which holds words, calls something by.

A study is written down, so that it names networks and data. Whoever has one in hand, in
a notebook say, gives it a name for as long as the study runs.
"""

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

_OBJECTS: dict[str, Any] = {}
_NUMBERS = itertools.count()


@contextlib.contextmanager
def named_object(given: Any) -> Iterator[str]:
    """Gives what `kljax.core.registry.resolve` finds the object by; a name is its own.

    Args:
      given: a name already, or anything else.
    """
    if isinstance(given, str):
        yield given
        return
    name = f"{type(given).__name__}_{next(_NUMBERS)}"
    _OBJECTS[name] = given
    try:
        yield f"{__name__}:{name}"
    finally:
        del _OBJECTS[name]


def __getattr__(name: str) -> Any:
    try:
        return _OBJECTS[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no {name!r}") from None
