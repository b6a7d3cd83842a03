"""The page of a network's audit: one table, a verdict in words, what stays open."""

import dataclasses
import math

from tabulate import tabulate

from kljax.core.files import json_text
from kljax.core.folders import RunFolder, optional
from kljax.metrics import COLUMNS, OUTCOME_RATES
from kljax.metrics.kinds import kind_named
from kljax.studies.audit.network import NetworkAudit, Tried
from kljax.studies.audit.panel import LABEL_RULES
from kljax.studies.gallery import draw_gallery
from kljax.studies.sentences import as_markdown

HEADER = ("attacker", "kind", "recovered", "95 %", "score", "floor", "labels", "spent")
WHOLE = HEADER.index("95 %")  # where what is right in whole stands, if it is told


def network_table(audit: NetworkAudit) -> tuple[list[str], list[list[str]]]:
    """Makes header and rows of the attackers that ran, in their order."""
    rows = []
    for one in audit.tried:
        if one.refused:
            continue
        if one.member.kind == LABEL_RULES:
            for rule, share in one.labels.items():
                rows.append([rule, one.member.kind, *["-"] * 4, f"{share:.0%}", "-"])
            continue
        rows.append(
            [
                one.member.name,
                one.member.kind,
                f"{one.recovered} of {audit.inputs}",
                _written(one),
                _number(one.score),
                _number(one.floor),
                _labels(one),
                _spent(one),
            ]
        )
    if audit.label_floor is not None:
        guess = ["a guess of the labels", "floor", *["-"] * 4]
        rows.append([*guess, f"{audit.label_floor:.0%}", "-"])
    header = list(HEADER)
    if any(one.whole is not None for one in audit.tried):
        wholes = {one.member.name: one.whole for one in audit.tried}
        header.insert(WHOLE, "in whole")
        for row in rows:
            whole = wholes.get(row[0])
            row.insert(WHOLE, "-" if whole is None else str(whole))
    return header, rows


def _how_to_read(audit: NetworkAudit) -> str:
    """Says what recovered, score and floor are of this kind of input."""
    kind = kind_named(audit.kind)
    said = {name: column.meaning for name, column in OUTCOME_RATES.items()}
    said |= kind.meanings
    words = f"*Recovered*: {said['recovered']}"
    if any(one.outcomes.get("recovered_affine") for one in audit.tried):
        words += "; or the same up to brightness and contrast"
    score = COLUMNS[kind.primary].meaning
    return (
        f"{words}. *Score* is the mean of: {score}; *floor*, of the best that is "
        "reached without any upload."
    )


def _labels(one: Tried) -> str:
    if one.member.labels == "given":
        return "given"
    return f"{one.labels['']:.0%}" if one.labels else "-"


def _written(one: Tried) -> str:
    share = one.share
    if share is None or math.isnan(share.low):
        return "-"
    return f"{share.low:.0%} to {share.high:.0%}"


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def _spent(one: Tried) -> str:
    seconds = f"{one.seconds:.0f} s"
    return f"{one.evaluations} evaluations, {seconds}" if one.evaluations else seconds


def page_of(audit: NetworkAudit) -> str:
    """Writes the page, in Markdown."""
    config = audit.config
    tables = {"tablefmt": "github", "disable_numparse": True}
    header, rows = network_table(audit)
    facts = [
        [name, as_markdown(str(value))]
        for name, value in dataclasses.asdict(config).items()
        if value is not None
    ]
    picture = [] if audit.best is None else ["", "![What was found](audit.png)"]
    return "\n".join(
        (
            f"# Audit of {as_markdown(config.model)} at batches of {config.batch}",
            "",
            f"**Verdict: {audit.verdict}.** {audit.words}",
            "",
            tabulate(rows, header, **tables),
            "",
            f"{config.uploads} uploads of {config.batch} {audit.noun}s each, without a "
            f"defence. {_how_to_read(audit)} Of a batch that is read by nobody an "
            "attacker may still know the labels.",
            *picture,
            "",
            "## What is not excluded",
            "",
            *(f"- {line}" for line in audit.open),
            "",
            "## What was asked",
            "",
            tabulate(facts, ["option", "value"], **tables),
            "",
        )
    )


def write_network_audit(folder: RunFolder, audit: NetworkAudit) -> None:
    """Writes the page, its numbers and the picture of the attacker that found most.

    Raises:
      NotWritten: if there is no room for the page.
    """
    folder.write_first({"audit.md": page_of(audit), "audit.json": _numbers(audit)})
    if audit.best is not None:
        with optional("audit.png"):
            draw_gallery(*audit.best, folder.aside / "audit.png")


def _numbers(audit: NetworkAudit) -> str:
    tried = [
        one._asdict()
        | {"member": one.member._asdict(), "recovered": one.recovered}
        | {
            name: None if interval is None else interval._asdict()
            for name, interval in (("share", one.share), ("corrected", one.corrected))
        }
        for one in audit.tried
    ]
    return json_text(
        {
            "config": dataclasses.asdict(audit.config),
            "verdict": audit.verdict,
            "words": audit.words,
            "open": audit.open,
            "inputs": audit.inputs,
            "label_floor": audit.label_floor,
            "tried": tried,
        }
    )
