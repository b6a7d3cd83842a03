"""``kljax list``."""

import dataclasses
import json
import textwrap
from typing import Annotated

import tyro
from rich.console import Console

from kljax.cli.printing import say

INDENT = "    "


@dataclasses.dataclass(frozen=True, kw_only=True)
class List:
    """Lists attacks, defences, networks, data and whatever else has a name.

    Attributes:
      kinds: which lists, such as attacks or defences; nothing for the names of all.
      json: whether to print JSON: ``{kind: [{name, written, does, needs, source}]}``.
    """

    kinds: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    json: bool = False


def run_list(job: List, console: Console) -> None:
    """Prints what the catalogues have."""
    from kljax.studies.catalogues import LISTS, entries

    lists = {kind: entries(kind) for kind in job.kinds or LISTS}
    if job.json:
        table = {kind: [e._asdict() for e in found] for kind, found in lists.items()}
        print(json.dumps(table, indent=2, ensure_ascii=False))
        return
    width = min(console.width, 88)
    for kind, found in lists.items():
        if not job.kinds:
            names = ", ".join(dict.fromkeys(entry.name for entry in found))
            say(console, f"{kind}:\n{_wrapped(names, width)}")
            continue
        for entry in found:
            say(console, f"{entry.written}\n{_wrapped(entry.does, width)}")
            if entry.needs:
                say(console, _wrapped(f"Needs: {entry.needs}.", width))
            if entry.source:
                say(console, _wrapped(f"Source: {entry.source}", width))
            say(console, "")
    if not job.kinds:
        say(console, "\nkljax list KIND says what each does, needs, and is taken from.")


def _wrapped(text: str, width: int) -> str:
    lines = textwrap.wrap(text, width - len(INDENT), break_on_hyphens=False)
    return textwrap.indent("\n".join(lines), INDENT)
