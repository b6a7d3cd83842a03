"""Tables on a terminal."""

from rich import box
from rich.table import Table


def printed_table(header: list[str], lines: list[list[str]]) -> Table:
    """Lays a header and rows of text out as a table."""
    printed = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False, pad_edge=False)
    for name in header:
        first = name == header[0]
        # Only names may be folded, on a narrow terminal.
        printed.add_column(
            name,
            justify="left" if first else "right",
            no_wrap=not first,
            overflow="fold" if first else "ellipsis",
        )
    for line in lines:
        printed.add_row(*line)
    return printed
