"""Reports: from rows to a table, a summary, a picture and a run folder.

A run folder appears whole or not at all, see `kljax.core.folders`.
"""

import csv
import dataclasses
import io
import math
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from kljax import metrics
from kljax.core.files import json_text, write_json, write_text
from kljax.core.folders import RunFolder, claim, optional
from kljax.metrics import COLUMNS, Column, column_from_dict
from kljax.metrics.kinds import KINDS, find_kind
from kljax.studies.builder import from_run
from kljax.studies.config import LeakConfig
from kljax.studies.gallery import draw_gallery
from kljax.studies.leak_study import write_study
from kljax.studies.leak_summary import by_input
from kljax.studies.leakage import LeakResult
from kljax.studies.matched_but_wrong import ambiguous_lines
from kljax.studies.scoring import Row
from kljax.studies.sentences import Cell, as_markdown, bold_right

# Heads of what a summary has beside the means of columns, and for a terminal.
COUNTED = {
    "n": "images",
    "recovered_rate": "recovered",
    "outcomes": "recovered_affine / unsolved / ambiguous / diverged",
}
BRIEFLY = {
    "recovered_rate": "reco-\nvered",
    "outcomes": "recovered_\naffine/\nunsolved/\nambiguous/\ndiverged",
}
NARROW = 6  # letters in a line of a head, in a terminal


def table(summary: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Lays the summary of one input out, as a header and lines: arms, then floors."""
    lines = [(name, arm) for name, arm in summary["arms"].items()]
    lines += [(f"floor: {name}", arm) for name, arm in summary["floors"].items()]
    columns = _columns(summary)
    heads = COUNTED | {"n": f"{summary.get('noun', 'image')}s"}
    heads |= {"success_rate": _success_head(summary, " ")}
    heads |= {
        column.name: column.heading
        for column in _shown("summary", summary)
        if any(column.name in arm for _, arm in lines)
    }
    return ["arm", *heads.values()], [
        [name, *(_cell(head, arm, columns) for head in heads)] for name, arm in lines
    ]


def _success_head(summary: dict[str, Any], between: str) -> str:
    words = summary.get("success_words", KINDS["image"].success_words)
    return f"{words}{between}[95 %]"


def _shown(place: str, summary: dict[str, Any]) -> list[Column]:
    """Lists the columns whose means are tabled in a place."""
    return [c for c in _columns(summary).values() if c.shown_in(place)]


def _columns(summary: dict[str, Any]) -> dict[str, Column]:
    """Reads all columns of the rows behind a summary."""
    own = map(column_from_dict, summary["config"]["own_columns"])
    return COLUMNS | {column.name: column for column in own}


def upload_lines(summary: dict[str, Any]) -> list[str]:
    """Says how many images of each upload each arm lost; none for single examples."""
    config, noun = summary["config"], summary.get("noun", "image")
    examples = config["examples"] * (config.get("average_clients") or 1)
    lines = []
    for name, arm in summary["arms"].items():
        if "recovered_of_uploads" not in arm:
            continue
        counts = np.array([arm["recovered_of_uploads"]])
        found = f"recovered {_span(counts)} of the {examples} {noun}s of an upload"
        text = f"{name}: {found}"
        affine = counts + [arm["recovered_affine_of_uploads"]]
        if (affine != counts).any():
            text += f", {_span(affine)} with those up to brightness and contrast"
        lines.append(f"{text}; a lower bound of what leaked")
    return lines


def _span(counts: np.ndarray) -> str:
    low, high = counts.min(), counts.max()
    return f"{low}" if low == high else f"{low} to {high} (mean {counts.mean():.1f})"


def brief_tables(
    summary: dict[str, Any],
) -> list[tuple[list[str], list[list[str]]]]:
    """Lays the summary out for a terminal: (header, rows) of arms, then of floors.

    It fits 80 columns; ``summary.md`` has the rest.
    """
    scores, found = (
        [c.name for c in _shown("terminal", summary) if (c.rows == "all") == of_all]
        for of_all in (True, False)
    )
    order = ["recovered_rate", *scores, "outcomes", *found, "success_rate"]
    columns, tables = _columns(summary), []
    for kind, lines in (("arm", summary["arms"]), ("floor", summary["floors"])):
        shown = [c for c in order if any(c in line for line in lines.values())]
        rows = [
            [name, *(_cell(c, line, columns).replace(" / ", "/") for c in shown)]
            for name, line in lines.items()
        ]
        heads = BRIEFLY | {"success_rate": _success_head(summary, "\n")}
        heads = [heads.get(c) or _brief_head(columns[c]) for c in shown]
        tables.append(([kind, *heads], rows))
    return tables


def _brief_head(column: Column) -> str:
    return "\n".join(textwrap.wrap(column.heading, NARROW, break_long_words=False))


def threat_lines(result: LeakResult) -> list[str]:
    """Writes the threat models down: first what all arms share, then the rest.

    A study of a run begins with who is attacked, and when.
    """
    facts = {
        arm.arm.name: {
            "knows": dataclasses.asdict(arm.threat.knowledge),
            "does": dataclasses.asdict(arm.threat.strategy),
        }
        for arm in result.arms
    }
    releases = [arm.arm.release_words for arm in result.arms]
    if any(release not in (None, "simulate") for release in releases):
        for model, release in zip(facts.values(), releases, strict=True):
            model["does"]["release"] = release
    models = list(facts.values())
    lines = []
    if result.config.from_run is not None:
        lines.append(from_run.describe(result.config))
    if result.config.observations > 1:
        lines.append(
            f"attacker pools {result.config.observations} uploads of the same "
            f"examples, by the {result.config.pooling} of their matching losses"
        )
    for verb in ("knows", "does"):
        shared = {
            name: value
            for name, value in models[0][verb].items()
            if all(model[verb][name] == value for model in models)
        }
        if shared:
            lines.append(f"attacker {verb}, in every arm: {_facts(shared)}")
        for model in models:
            model[verb] = {k: v for k, v in model[verb].items() if k not in shared}
    for name, model in facts.items():
        own = [f"{verb} {_facts(model[verb])}" for verb in model if model[verb]]
        if own:
            lines.append(f"{name}: {'; '.join(own)}")
    return lines


def _facts(facts: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in facts.items())


def _cell(column: str, arm: dict[str, Any], columns: dict[str, Column]) -> str:
    value = arm.get(column)
    if value is None:
        return "-"
    if column == "outcomes":
        return " / ".join(str(value[o]) for o in metrics.OUTCOMES if o != "recovered")
    if column == "success_rate":
        low, high = 100 * arm["success_low"], 100 * arm["success_high"]
        bounds = f"{low:.0f}-{high:.0f}" if math.isfinite(low) else "?"
        return f"{value:.0%} [{bounds}]"
    if column == "recovered_rate":
        return f"{value:.0%}"
    return str(value) if column == "n" else columns[column].written(value)


# Of any kind of input; what comes before it is the kind's own.
READING = """\
*feature error*: how far the
classifier's input is from what its gradient says, lock or none. *label rule holds*:
uploads on which the rule that labels were recovered by can be believed, as far as they
show; elsewhere labels are guesses. A key-lock's `known` arm is not the undefended arm:
dead ReLU channels and saturated sigmoids make inversion hard even for someone who has
the private key, and that is difficulty, not secrecy."""


def reading_of(result: LeakResult) -> str:
    """Says in Markdown how the tables of a study are read."""
    scored = result.dataset.input_spec.scored.values()
    readings = dict.fromkeys(find_kind(spec).reading for spec in scored)
    return " ".join([*readings, READING])


def lines_below(summary: dict[str, Any]) -> list[str]:
    """Says what tables do not: of uploads, and of images that are matched but wrong."""
    found = []
    for name, of_input in by_input(summary).items():
        lines = [*upload_lines(of_input), *ambiguous_lines(of_input)]
        lines += column_lines(of_input)
        found += lines if name is None else [f"{name}: {line}" for line in lines]
    return found


def column_lines(summary: dict[str, Any]) -> list[str]:
    """Says of a table which share of each column's cells every arm has right."""
    return [
        f"{arm}, right by column: "
        + ", ".join(f"{name} {share:.0%}" for name, share in columns.items())
        for arm, columns in summary.get("by_column", {}).items()
        if arm in summary["arms"]
    ]


def sentences_of(summary: dict[str, Any]) -> list[str]:
    """Lists the first sentences of all inputs, and what was found of them."""
    inputs = by_input(summary).values()
    return [line for of_input in inputs for line in of_input.get("sentences", ())]


def markdown(result: LeakResult, summary: dict[str, Any]) -> str:
    """Writes the study down as Markdown: table, reading aid, threat models."""
    tables = []
    for name, of_input in by_input(summary).items():
        header, lines = table(of_input)
        heading = "" if name is None else f"Input `{name}`:\n\n"
        written = tabulate(lines, header, tablefmt="github", disable_numparse=True)
        tables.append(heading + written)
    tables = "\n\n".join(tables)
    config, speed = result.config, summary["throughput"]
    models = "\n".join(f"- {line}" for line in threat_lines(result))
    below = "".join(f"- {line}\n" for line in lines_below(summary))
    below = f"\n{below}" if below else ""
    sentences = _first_texts(summary)
    # Closed forms evaluate nothing, whatever number they were offered.
    examples = f"{config.examples}"
    if config.average_clients is not None:
        examples = f"{config.average_clients} client(s) averaged, {examples}"
    budget = f" with {config.restarts} restart(s) of {config.steps} evaluations"
    budget = budget if speed["evaluations_per_s"] else ""
    return f"""\
# Leakage of `{config.model}` on `{config.data}`

{speed["victims"]} victims, {examples} example(s) per upload, attack
`{config.attack}`{budget},
{config.weights} weights, matmul precision `{config.precision}`, seed {config.seed}.

{tables}
{below}
{reading_of(result)}
{sentences}
Throughput: {speed["evaluations_per_s"]:.0f} evaluations/s,
{speed["attacks_per_hour"]:.0f} attacks/h on {speed["device"]}
({speed["run_s"]:.1f} s running, {speed["compile_s"]:.1f} s compiling).

Threat models:

{models}

Data: {result.dataset.licence}
{_warning_lines(summary)}"""


def _first_texts(summary: dict[str, Any]) -> str:
    """Shows the first sentences beside what was found; lists what else is written."""
    written = ""
    for name, of_input in by_input(summary).items():
        of = "" if name is None else f" of input `{name}`"
        head = f"\nThe first {of_input.get('noun', 'image')}s{of}:\n\n"
        lines = [
            (
                as_markdown(truth),
                as_markdown(one.arm),
                bold_right(one.guess, truth),
                f"{one.accuracy:.0%}",
            )
            for truth, found in of_input.get("texts", ())
            for one in found
        ]
        if lines:
            columns = ("truth", "arm", "found, right words bold", "tokens")
            table = tabulate(lines, columns, tablefmt="github", disable_numparse=True)
            written += f"{head}{table}\n"
        elif of_input.get("cells"):
            written += head + "\n\n".join(map(_side_by_side, of_input["cells"])) + "\n"
        elif of_input.get("sentences"):
            written += head + "".join(f"- {line}\n" for line in of_input["sentences"])
    return written


def _side_by_side(found: dict[str, list[Cell]]) -> str:
    """Draws a row of a table: truth and arms column by column, what is right bold."""
    columns = zip(*found.values(), strict=True)
    lines = [
        (
            as_markdown(cells[0].name),
            as_markdown(cells[0].truth),
            *(
                f"**{as_markdown(cell.guess)}**"
                if cell.right
                else as_markdown(cell.guess)
                for cell in cells
            ),
        )
        for cells in columns
    ]
    head = ("column", "truth", *map(as_markdown, found))
    return tabulate(lines, head, tablefmt="github", disable_numparse=True)


def _warning_lines(summary: dict[str, Any]) -> str:
    return "".join(f"\nWarning: {words}\n" for words in summary.get("warnings", ()))


def write_run(
    folder: Path | RunFolder,
    result: LeakResult,
    rows: list[Row],
    summary: dict[str, Any],
) -> None:
    """Writes a run folder: config, rows, summary, picture, and a study.

    Configuration and rows come first. What else cannot be made is left out, with a
    warning, which the summary names, too. See `kljax.studies.leak_study` for the study,
    which has all reconstructions and is what `kljax report` reads.

    Args:
      folder: a new one, or one that was claimed before the work.
      result, rows, summary: of the study.

    Raises:
      FileExistsError: if `folder` is there already; nothing is touched.
      OSError: if it cannot be written; configuration and rows are rescued elsewhere,
        and the error says where.
    """
    if not isinstance(folder, RunFolder):
        with claim(folder) as claimed:
            return write_run(claimed, result, rows, summary)
    config = json_text(summary["config"])
    folder.write_first({"config.json": config, "rows.csv": _csv_text(rows)})
    picture = folder.aside / "gallery.png"
    warnings = [*summary.get("warnings", ())]
    with optional("gallery.png") as left_out:
        draw_gallery(result, rows, picture)
    if left_out:
        picture.unlink(missing_ok=True)
    warnings += left_out
    with optional("the study that kljax report reads") as left_out:
        write_study(folder.aside, folder.folder.name, result, rows)
    warnings += left_out
    if warnings:
        summary = summary | {"warnings": warnings}
    write_text(folder.aside / "summary.md", markdown(result, summary))
    write_json(folder.aside / "summary.json", summary)


def room_of(config: LeakConfig) -> int:
    """Estimates the bytes of a run folder, from above but for very long names.

    Of several inputs each has as many rows: how many there are, only the dataset says.
    Images are counted as the configuration has them, beside their truths and snapshots.
    """
    examples = config.victims * config.victim_examples
    arms, floors = len(config.arms), len(metrics.FLOORS)
    width = config.image_width or config.image_size
    values = config.image_size * width * config.channels
    # Rows are in rows.csv and in the parts of the study, where each arm has the floors.
    rows = examples * (arms + floors + arms * (1 + floors))
    pictures = 2 + config.snapshots
    return 2**20 + 1500 * rows + 4 * pictures * values * examples * arms


def _csv_text(rows: list[Row]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]) if rows else list(COLUMNS))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
