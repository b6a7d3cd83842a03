"""``kljax columns``."""

import dataclasses
import textwrap
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from kljax.cli.printing import say

INDENT = "    "


@dataclasses.dataclass(frozen=True, kw_only=True)
class Columns:
    """Says what is in the rows: every column, its type, its range and its meaning.

    Attributes:
      folder: of kljax leak or kljax sweep, whose columns of your own are listed, too.
    """

    folder: Annotated[Path | None, tyro.conf.Positional] = None


def run_columns(job: Columns, console: Console) -> None:
    """Prints the columns of all rows."""
    from kljax.metrics import COLUMNS, OUTCOME_RATES, RUN_COLUMNS, guide
    from kljax.studies.frames import own_columns_of

    sections = {
        "Rows of kljax leak and kljax sweep, one per image and arm": COLUMNS,
        "Rates of outcomes, for kljax report --value": OUTCOME_RATES,
        "Rows of kljax train, one per arm and round": RUN_COLUMNS,
    }
    if job.folder is not None:
        sections[f"Your own, in {job.folder}"] = own_columns_of(job.folder)
    width = min(console.width, 88)
    for number, (title, columns) in enumerate(sections.items()):
        say(console, f"{title}:" if not number else f"\n{title}:")
        for head, meaning in guide(columns.values()):
            say(console, f"\n{head}")
            wrapped = textwrap.wrap(meaning, width - len(INDENT))
            say(console, textwrap.indent("\n".join(wrapped), INDENT))
        if not columns:
            say(console, "none")
