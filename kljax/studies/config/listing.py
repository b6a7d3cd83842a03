"""Lists of names in docstrings, and so in help texts: made from the catalogues."""

import textwrap
from collections.abc import Callable, Iterable
from typing import TypeVar

C = TypeVar("C", bound=type)
WIDTH = 88  # of a line of source


def fill_lists(**lists: Iterable[str]) -> Callable[[C], C]:
    """Fills the names of catalogues into the docstring of a class.

    The command line shows the docstring of a configuration's class as its help. Where
    it says ``{attacks}``, the list of that name is written: ``a, b or c``.

    Args:
      lists: the names, by what the docstring calls them.

    Returns:
      A decorator.

    Raises:
      ValueError: if the docstring has no place for a list, or none of that name.
    """
    written = {f"{{{name}}}": join_names(names) for name, names in lists.items()}

    def fill(kind: C) -> C:
        text = kind.__doc__
        if text is None:  # Python was told to keep no docstrings
            return kind
        absent = [place for place in written if place not in text]
        if absent:
            raise ValueError(f"the docstring of {kind.__name__} has no {absent[0]}")
        kind.__doc__ = "\n".join(_filled(line, written) for line in text.split("\n"))
        return kind

    return fill


def join_names(names: Iterable[str]) -> str:
    """Writes a list of names: ``a, b or c``; ``nothing`` for none."""
    *first, last = [*names] or ["nothing"]
    return f"{', '.join(first)} or {last}" if first else last


def _filled(line: str, written: dict[str, str]) -> str:
    text = line
    for place, names in written.items():
        text = text.replace(place, names)
    if text == line:
        return line
    indent = line[: len(line) - len(line.lstrip())]
    # A field's first line stands out by two.
    hanging = indent + "  " * (line.lstrip().split(" ")[0].endswith(":"))
    return textwrap.fill(
        text.strip(),
        WIDTH,
        initial_indent=indent,
        subsequent_indent=hanging,
        break_on_hyphens=False,
        break_long_words=False,
    )
