"""The page of an audit: one table, one picture, a verdict in words."""

import dataclasses
from pathlib import Path

import numpy as np
from tabulate import tabulate

from kljax.core.files import json_text
from kljax.core.folders import RunFolder, optional
from kljax.studies.audit.auditing import Audit
from kljax.studies.gallery import displayed
from kljax.studies.sentences import as_markdown

MOST = 6  # candidates in the picture


def table(audit: Audit) -> tuple[list[str], list[list[str]]]:
    """Makes the table's header and rows: candidates, best first, then random images."""
    scored = bool(audit.scores)
    header = ["candidate", "own loss", "misfit", "worst tensor", "labels"]
    header += ["PSNR [dB]", "SSIM"] * scored
    rows = []
    for one in audit.found:
        labels = " ".join(map(str, np.ravel(one.labels).tolist()[:8]))
        row = [one.source, f"{one.loss:.2g}", f"{one.misfit.whole:.2g}"]
        row += [f"{one.misfit.worst:.2g}", labels]
        rows.append(row + _scores(audit, one.source) * scored)
    grey, *random = audit.wrong
    whole = [one.whole for one in random]
    worst = [one.worst for one in random]
    least = [f"{min(whole):.2g}", f"{min(worst):.2g}"]
    dashes = ["-"] * (3 if scored else 1)
    rows.append(
        ["a grey image", "-", f"{grey.whole:.2g}", f"{grey.worst:.2g}", *dashes]
    )
    rows.append([f"best of {len(whole)} random images", "-", *least, *dashes])
    middle = [f"{np.median(whole):.2g}", f"{np.median(worst):.2g}"]
    rows.append([f"median of {len(whole)} random images", "-", *middle, *dashes])
    for name in audit.scores:
        if name.startswith("floor/"):
            rows.append([name, "-", "-", "-", "-", *_scores(audit, name)])
    return header, rows


def _scores(audit: Audit, name: str) -> list[str]:
    if name not in audit.scores:
        return []
    found = audit.scores[name]
    return [f"{found['psnr']:.1f}", f"{found['ssim']:.3f}"]


def page_of(audit: Audit) -> str:
    """Writes the page, in Markdown."""
    header, rows = table(audit)
    tables = {"tablefmt": "github", "disable_numparse": True}
    facts = [list(row) for row in audit.config.told()]
    facts.append(["type of the upload", audit.type, "read"])
    if audit.stats:
        facts.append(["statistics of norm layers", audit.stats, "read"])
    matched = [
        [path, as_markdown(match.source), match.how, match.moved or "-"]
        for path, match in audit.matches.items()
    ]
    follows = [
        f"- **{one.about}**: {one.says}"
        + f" *Contradicted: {one.contradicts}.*" * bool(one.contradicts)
        for one in audit.findings
    ]
    forms = [
        f"- `{form.name}` "
        + ("applies" if form.attack else f"does not apply: {form.why_not}")
        for form in audit.forms
    ]
    return "\n".join(
        (
            f"# Audit of {as_markdown(audit.config.upload_file.name)}",
            "",
            f"**Verdict: {audit.verdict.name}.** {audit.verdict.words}",
            "",
            tabulate(rows, header, **tables),
            "",
            "*Misfit* is the length of the difference between the upload and what a "
            "candidate would have sent, as a share of the upload's; *worst tensor* is "
            "the largest such share of one tensor. An upload counts as given at "
            f"{audit.verdict.threshold:.1g} or less there. *Own loss* is each attack's "
            "objective, not comparable between attacks.",
            "",
            "![Candidates, best first](audit.png)",
            "",
            "## What it rests on",
            "",
            tabulate(facts, ["fact", "value", "said or assumed"], **tables),
            "",
            tabulate(
                matched, ["network", "file", "found by", "what was moved"], **tables
            ),
            "",
            "## What follows without a search",
            "",
            *follows,
            "",
            *forms,
            "",
        )
    )


def draw(audit: Audit, path: Path) -> None:
    """Draws the best candidates, a row each, beside the truth if there is one."""
    import matplotlib.figure

    shown = [(one.source, one.images) for one in audit.found[:MOST]]
    if audit.truth is not None:
        shown.insert(0, ("truth", audit.truth))
    count = min(len(shown[0][1]), 8)
    figure = matplotlib.figure.Figure(
        figsize=(1.3 * count + 2.2, 1.3 * len(shown)), layout="constrained"
    )
    axes = figure.subplots(len(shown), count, squeeze=False)
    for line, (name, images) in zip(axes, shown, strict=True):
        for axis, image in zip(line, images[:count], strict=True):
            axis.imshow(displayed(image), cmap="gray", vmin=0, vmax=1)
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(
            name.replace(", ", ",\n"),
            rotation=0,
            ha="right",
            va="center",
            fontsize=8,
            parse_math=False,
        )
    figure.savefig(path, dpi=120)


def write_audit(folder: RunFolder, audit: Audit) -> None:
    """Writes the page, its numbers, its picture and the reconstructions.

    Raises:
      NotWritten: if there is no room for the page.
    """
    folder.write_first({"audit.md": page_of(audit), "audit.json": _numbers(audit)})
    with optional("audit.png"):
        draw(audit, folder.aside / "audit.png")
    best = audit.found[0]
    np.savez(folder.aside / "best.npz", images=best.images, labels=best.labels)


def _numbers(audit: Audit) -> str:
    config = dataclasses.asdict(audit.config)
    config = {n: str(v) if isinstance(v, Path) else v for n, v in config.items()}
    candidates = [
        {
            "source": one.source,
            "loss": one.loss,
            "labels": np.ravel(one.labels).tolist(),
            **one.misfit._asdict(),
        }
        for one in audit.found
    ]
    return json_text(
        {
            "config": config,
            "verdict": audit.verdict._asdict(),
            "findings": [dataclasses.asdict(one) for one in audit.findings],
            "candidates": candidates,
            "wrong_images": [one._asdict() for one in audit.wrong],
            "scores": audit.scores,
        }
    )
