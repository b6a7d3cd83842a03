"""What the command line prints, all of it.

Names come from users: nothing that is printed is read as markup.
"""

import contextlib
import sys
import warnings
from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


def open_console() -> Console:
    """Opens the terminal, which prints what it can of any text in any locale."""
    for stream in (sys.stdout, sys.stderr):
        # Not every stream has it: a notebook's, for one.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    return Console(markup=False, emoji=False)


def say(console: Console, line: str, *, wrap: bool = False) -> None:
    """Prints a line as it is; prose may be wrapped, paths and commands may not."""
    plain = {"markup": False, "emoji": False, "highlight": False}
    console.print(line, **plain, soft_wrap=not wrap)


def printed_table(header: list[str], lines: list[list[str]]) -> Table:
    """Lays a header and rows of text out as a table."""
    printed = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False, pad_edge=False)
    for name in header:
        first = name == header[0]
        # Only names may be folded, on a narrow terminal.
        printed.add_column(
            Text(name),
            justify="left" if first else "right",
            no_wrap=not first,
            overflow="fold" if first else "ellipsis",
        )
    for line in lines:
        printed.add_row(*map(Text, line))
    return printed


@contextlib.contextmanager
def warnings_told(kind: type[Warning]) -> Iterator[list[str]]:
    """Lists warnings of one kind, each once, instead of showing where they arose."""
    told: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always", kind)
        show = warnings.showwarning

        def tell(message, category, *where, **options) -> None:
            if not issubclass(category, kind):
                show(message, category, *where, **options)
            elif str(message) not in told:
                told.append(str(message))

        warnings.showwarning = tell
        yield told
