"""The report as Markdown."""

from collections.abc import Sequence

from tabulate import tabulate

from kljax.studies.reports import words
from kljax.studies.reports.against import Against
from kljax.studies.reports.contents import Contents
from kljax.studies.reports.figures import Figure
from kljax.studies.reports.gallery import Gallery
from kljax.studies.reports.tables import Table
from kljax.studies.reports.verdicts import Outcomes
from kljax.studies.sentences import as_markdown, bold_right


def to_markdown(contents: Contents) -> str:
    """Lays a report out as Markdown."""
    sections = [
        f"# Study {_safe(contents.name)}\n\n{contents.progress.text()}",
        _studied(contents),
        _section("Threat model", _threats(contents)),
        _section("Results", *_results(contents)),
    ]
    if contents.comparisons:
        table = contents.comparisons
        sections.append(
            _section(table.title, words.comparing(contents.kinds), _table(table))
        )
    if contents.against:
        sections.append(_against(contents.against, contents.kinds))
    if contents.rankings:
        tables = [
            text
            for table in contents.rankings
            for text in (f"### {_safe(table.title)}", _table(table))
        ]
        sections.append(_section("Rankings", words.ranking(contents.kinds), *tables))
    if contents.consistency:
        table = contents.consistency
        sections.append(_section(table.title, words.CONSISTENCY, _table(table)))
    if contents.budgets:
        lines = [f"- {_safe(name)}: {reads}." for name, reads in contents.budget_words]
        sections.append(
            _section(
                "Success against attack budget",
                words.spending(contents.kinds),
                "\n".join(lines),
                _figure(contents.budget_figure),
                _table(contents.budgets),
            )
        )
    if contents.tradeoffs or contents.tradeoff_notes:
        sections.append(
            _section(
                f"Privacy against {contents.measured}",
                "\n\n".join(map(_safe, contents.tradeoff_notes)),
                _figure(contents.tradeoff_figure),
                _table(contents.tradeoffs) if contents.tradeoffs else "",
            )
        )
    if contents.gallery.rows:
        choosing = f"{words.choosing(contents.kinds)} They are in `report.html`."
        sections.append(
            _section("Reconstructions", choosing, _sentences(contents.gallery))
        )
    if contents.failures:
        sections.append(_section("Failures", *_failures(contents)))
    sections.append(_section("How to repeat it", *_repeat(contents)))
    return "\n\n".join(section for section in sections if section) + "\n"


def _section(title: str, *parts: str) -> str:
    return "\n\n".join([f"## {title}", *(part for part in parts if part)])


def _studied(contents: Contents) -> str:
    lines = [
        f"- {_safe(name)}: {_safe(', '.join(at))}"
        for name, at in contents.varied.items()
    ]
    same = ", ".join(f"{name}={value}" for name, value in contents.facts.items())
    if same:
        lines.append(f"- the same everywhere: {_safe(same)}")
    return _section("What was studied", "\n".join(lines)) if lines else ""


def _threats(contents: Contents) -> str:
    if not contents.threats:
        return "No cell, no attacker."
    return "\n".join(
        f"- **{_safe(who)}**: {_safe(' '.join(sentences))}"
        for who, sentences in contents.threats
    )


def _results(contents: Contents) -> list[str]:
    if not contents.progress.victims:
        return ["There is nothing to table yet."]
    parts = []
    for table in contents.pivots:
        parts += [f"### {_safe(table.title)}", _table(table)]
    parts.append(
        "In each place: mean [95 % interval], floor, ± spread over repetitions, and "
        f"{' / '.join(Outcomes._fields)}."
    )
    parts += [f"### {contents.points.title}", _table(contents.points)]
    reading = (
        f"- *{name}*: {meaning}" for name, meaning in words.reading(contents.kinds)
    )
    parts += ["### How to read it", "\n".join(reading)]
    parts.append("\n".join(f"- {_safe(note)}" for note in contents.notes))
    figures = contents.distributions, contents.trends, contents.convergence
    notes = "\n".join(f"- {_safe(note)}" for note in contents.convergence_notes)
    return [*parts, *map(_figure, figures), notes]


def _against(against: Against, kinds: Sequence[str]) -> str:
    same, pairs = against.equal

    def listed(words: str, lines: Sequence[str]) -> str:
        items = "\n".join(f"- {_safe(line)}" for line in lines)
        return f"{words}\n\n{items}" if lines else ""

    return _section(
        f"Against {_safe(against.other)}",
        words.against(kinds),
        f"{same} of {pairs} pairs have the very same value.",
        listed("The studies as wholes:", against.apart),
        _table(against.table),
        listed(words.UNLIKE, against.unpaired),
    )


def _failures(contents: Contents) -> list[str]:
    parts = []
    for failure in contents.failures:
        point = ", ".join(f"{a}={b}" for a, b in failure.get("point", {}).items())
        parts += [
            f"Cell {failure['cell']} ({_safe(point)}): "
            f"{_safe(str(failure.get('error', '')))}",
            _code(str(failure.get("command", "")), "sh"),
        ]
    return parts


def _repeat(contents: Contents) -> list[str]:
    versions = ", ".join(f"{k} {v}" for k, v in contents.versions.items())
    return [
        f"On {contents.device}, with {versions or 'versions that are not known'}:",
        _code("\n".join(contents.commands), "sh"),
        "where `sweep.toml` is",
        _code(contents.sweep.strip(), "toml"),
    ]


def _figure(figure: Figure | None) -> str:
    if figure is None:
        return ""
    note = f"\n\n{figure.note}" if figure.note else ""
    return f"![{figure.title}. {figure.alt}]({figure.name}.svg){note}"


def _table(table: Table) -> str:
    lines = [[_flat(entry.text) for entry in line] for line in table.lines]
    header = [_flat(name) for name in table.header]
    return tabulate(lines, header, tablefmt="github", disable_numparse=True)


def _flat(text: str) -> str:
    """Writes text so that it stays in its place of a table."""
    return _safe(text).replace("|", "\\|").replace("\n", "<br>")


def _sentences(gallery: Gallery) -> str:
    """Tables the sentences of a gallery beside what was found; nothing of images."""
    lines = [
        [
            _flat(row.name),
            shown.rank,
            as_markdown(shown.truth),
            bold_right(shown.guess, shown.truth),
            shown.score,
        ]
        for row in gallery.rows
        for shown in row.shown
        if shown.written
    ]
    if not lines:
        return ""
    head = ("point", "rank", "truth", "found, right words bold", "score")
    return tabulate(lines, head, tablefmt="github", disable_numparse=True)


def _safe(text: str) -> str:
    """Writes text so that none of it is taken for HTML."""
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _code(text: str, language: str) -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}\n{fence}"
