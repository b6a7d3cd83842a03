"""Names: how a word on the command line becomes a function."""

import contextlib
import difflib
import importlib
import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def nearest(name: str, names: Iterable[object]) -> str:
    """Writes a hint at the name that was probably meant; empty if none is near.

    Among choices may be numbers, which no name is near to.
    """
    known = [known for known in names if isinstance(known, str)]
    near = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def unknown_name(kind: str, name: str, names: Iterable[str]) -> str:
    """Writes the error for a name that does not exist."""
    names = list(names)
    return (
        f"unknown {kind} {name!r}{nearest(name, names)}; known: {', '.join(names)}, or "
        "package.module:function for your own"
    )


def resolve(kind: str, name: str, table: Mapping[str, T]) -> T:
    """Finds what `name` stands for.

    Args:
      kind: what is being named ("model", "attack", ...), for errors.
      name: a name in `table`, or ``package.module:function`` for anything that can be
        imported.
      table: the names of the library.

    Python imports a module once in a process: ``__main__:function`` is what the name
    stands for now, in a notebook too, and a file that was edited counts after
    ``importlib.reload`` or in a new process.

    Raises:
      ValueError: for an unknown name (the nearest known one is given), and for a
        module or attribute that cannot be imported.
    """
    if name in table:
        return table[name]
    module_name, colon, attribute = name.partition(":")
    parts = [*module_name.split("."), *attribute.split(".")]
    if not colon or not all(part.isidentifier() for part in parts):
        raise ValueError(unknown_name(kind, name, table))
    try:
        named = importlib.import_module(module_name)
    except ImportError as error:
        raise ValueError(
            f"{kind} {name!r}: cannot import module {module_name!r} ({error})"
        ) from error
    for part in attribute.split("."):
        if not hasattr(named, part):
            raise ValueError(f"{kind} {name!r}: {named!r} has no attribute {part!r}")
        named = getattr(named, part)
    return named


class Itself:
    """A value that equals nothing but itself, to be looked up by."""

    def __init__(self, value: Any):
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Itself) and self._value is other._value

    def __hash__(self) -> int:
        return id(self._value)


def own_functions(values: Any) -> tuple[Itself, ...]:
    """Finds what the ``package.module:function`` in some values stand for now.

    Args:
      values: of a configuration: strings, which may hold such a name beside numbers
        and other names, as arms do; tuples of values; and whatever else.
    """
    if isinstance(values, tuple):
        return tuple(one for value in values for one in own_functions(value))
    if not isinstance(values, str):
        return ()
    functions = []
    # Before the name of a role stand the clients that have it: 0:package:function.
    for name in re.findall(r"(?<![\w.])[^\W\d][\w.]*:[\w.]+", values):
        with contextlib.suppress(ValueError):  # whoever needs it says what is wrong
            functions.append(Itself(resolve("function", name, {})))
    return tuple(functions)


def call_named(kind: str, name: str, function: Any, /, *arguments, **options) -> Any:
    """Calls what a name stands for.

    Args:
      kind, name: see `resolve`.
      function: what it stands for.
      arguments, options: what it is called with.

    Raises:
      ValueError: for what is no function, or takes other arguments. What the function
        itself raises is its own.
    """
    check_callable(kind, name, function)
    try:
        inspect.signature(function).bind(*arguments, **options)
    except TypeError as error:
        given = [*(type(value).__name__ for value in arguments), *options]
        raise ValueError(
            f"{kind} {name!r} cannot be called with {', '.join(given) or 'nothing'}: "
            f"{error}"
        ) from error
    except ValueError:  # what is not written in Python may not say what it takes
        pass
    return function(*arguments, **options)


def make_named(
    kind: str, text: str, table: Mapping[str, Callable[..., T]], *given
) -> T:
    """Calls what ``NAME[=OPTIONS]`` stands for with its options.

    Args:
      kind: what is being made, for errors.
      text: what is written; NAME as in `resolve`. OPTIONS are numbers with commas
        between them, in the order of the function's, or by name:
        ``model-replacement=norm=2``.
      table: the names of the library.
      given: arguments before the numbers.

    Returns:
      What the function of that name gives; a number without a point is an integer.

    Raises:
      ValueError: for an unknown name, what is no finite number, and options that the
        function does not take. What the function itself raises is its own.
    """
    name, written, options = text.partition("=")
    function = resolve(kind, name, table)
    in_order, by_name = [], {}
    for part in options.split(",") if written else ():
        option, equals, number = part.rpartition("=")
        value = _number(kind, text, number)
        if not equals and by_name:
            raise ValueError(
                f"{kind} {text!r}: {part!r} follows an option that is written by name: "
                "write it by name, too"
            )
        if option in by_name:
            raise ValueError(f"{kind} {text!r}: option {option!r} is written twice")
        if equals:
            by_name[option] = value
        else:
            in_order.append(value)
    return call_named(kind, name, function, *given, *in_order, **by_name)


def notations(
    table: Mapping[str, Callable[..., Any]], given: int = 0
) -> tuple[str, ...]:
    """Writes how each name of a table is called by `make_named`, such as ``krum[=F]``.

    Args:
      table: the names of the library.
      given: how many arguments come before the numbers.
    """
    return tuple(_notation(name, make, given) for name, make in table.items())


def _notation(name: str, make: Callable[..., Any], given: int) -> str:
    written = ""
    parameters = list(inspect.signature(make).parameters.values())[given:]
    for parameter in reversed(parameters):
        before = "=" if parameter is parameters[0] else ","
        written = f"{before}{parameter.name.upper()}{written}"
        if parameter.default is not parameter.empty:
            written = f"[{written}]"
    return name + written


def _number(kind: str, text: str, part: str) -> int | float:
    with contextlib.suppress(ValueError):
        return int(part)
    try:
        value = float(part)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{kind} {text!r}: {part!r} is no finite number")
    return value


def check_callable(kind: str, name: str, function: Any) -> Callable[..., Any]:
    """Refuses what is no function, and gives back what is one.

    Raises:
      ValueError: see above.
    """
    if not callable(function):
        raise ValueError(
            f"{kind} {name!r} is no function, but {type(function).__name__}"
        )
    return function
