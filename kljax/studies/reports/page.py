"""The report as one page that needs nothing else: no network, no script."""

import base64
import functools
import math
import re
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from kljax.studies.reports import words
from kljax.studies.reports.contents import Contents
from kljax.studies.reports.estimates import Estimate
from kljax.studies.reports.values import capitalised
from kljax.studies.reports.verdicts import Outcomes
from kljax.studies.sentences import split_by_truth

HERE = Path(__file__).parent
NO_BREAK = "\xa0"  # a space at which no line ends


def to_page(contents: Contents) -> str:
    """Lays a report out as HTML.

    Every text is escaped; pictures are data URIs; style and script are inside. Without
    a script the tables are the same, but cannot be filtered and sorted.
    """
    return render("page.html", contents=contents)


def render(template: str, **given: Any) -> str:
    """Renders a template of this folder as a page that needs nothing else."""
    return _environment().get_template(template).render(**given).lstrip()


@functools.cache
def _environment() -> jinja2.Environment:
    """Makes what all pages share, once: compiled templates, filters, style, script."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "png": _png,
        "svg": _svg,
        "lines": str.splitlines,
        "breakable": breakable,
        "narrow": narrow,
        "split_by": split_by_truth,
        "capitalised": capitalised,
        "emphasised": emphasised,
    }
    environment.globals |= {
        "words": words,
        "style": (HERE / "page.css").read_text(encoding="utf-8"),
        "script": (HERE / "page.js").read_text(encoding="utf-8"),
        "rate": rate_marks,
        "shares": outcome_shares,
        "outcomes": Outcomes._fields,
    }
    return environment


def rate_marks(success: Estimate) -> dict[str, Any] | None:
    """Computes where the marks of a rate are, in per cent; None without a rate.

    An interval that is not known has no mark: one of no width would claim certainty.
    """
    if not success.n:
        return None
    low, high = success.interval.low, success.interval.high
    floor = success.floor.mean if success.floor else None
    return {
        "mean": _percent(success.mean),
        "interval": (_percent(low), _percent(high)) if math.isfinite(low) else None,
        "floor": None if floor is None else _percent(floor),
    }


def outcome_shares(outcomes: Outcomes) -> list[tuple[str, float, float]]:
    """Lists name, start and width of each outcome, in per cent; none without rows."""
    total = sum(outcomes)
    shares, start = [], 0.0
    for name, count in outcomes._asdict().items():
        if count:
            shares.append((name, round(start, 2), round(100 * count / total, 2)))
            start += 100 * count / total
    return shares


def breakable(text: str) -> markupsafe.Markup:
    """Escapes a text, and says where a line of it may end.

    It may after a slash within a name, and after the comma between two words; it may
    not within an interval, or before a unit.
    """
    safe = str(markupsafe.escape(_bound(text)))
    safe = re.sub("/(?=[A-Za-z])", "/<wbr>", safe)
    return markupsafe.Markup(re.sub(", (?=[A-Za-z])", ", <wbr>", safe))


def narrow(text: str) -> str:
    """Lets the name of a column break where it stands in a few letters' width."""
    return re.sub("([/_])(?=[A-Za-z])", "\\1\u200b", _bound(text))


def _bound(text: str) -> str:
    """Binds what is within an interval, and a unit to its number."""
    kept = re.sub(r"\[[^\[\]]*\]", lambda found: found[0].replace(" ", NO_BREAK), text)
    return kept.replace(" %", f"{NO_BREAK}%")


def emphasised(text: str) -> markupsafe.Markup:
    """Escapes a text, and writes ``*what is emphasised*`` as HTML does."""
    safe = str(markupsafe.escape(text))
    return markupsafe.Markup(re.sub(r"\*([^*]+)\*", r"<em>\1</em>", safe))


def _percent(share: float) -> float:
    return round(100 * share, 2)


def _png(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def _svg(content: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(content).decode()
