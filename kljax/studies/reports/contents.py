"""Contents: all that a report says, before it is laid out as Markdown or as a page."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kljax.metrics import find_value
from kljax.studies import store
from kljax.studies.reports.against import Against, compare_studies
from kljax.studies.reports.axes import arm_axis, arrange, axes_of, input_axis
from kljax.studies.reports.budgets import budgets_table, make_curves
from kljax.studies.reports.comparisons import compare_arms, comparisons_table
from kljax.studies.reports.consistency import consistency_table
from kljax.studies.reports.contenders import find_accuracies
from kljax.studies.reports.convergence import draw_convergence, make_convergence
from kljax.studies.reports.figures import Figure
from kljax.studies.reports.gallery import Gallery, make_gallery
from kljax.studies.reports.kinds import default_value, kinds_of, noun
from kljax.studies.reports.matrix import Matrix, make_matrices
from kljax.studies.reports.notes import (
    counted,
    damaged_notes,
    result_notes,
    tradeoff_notes,
)
from kljax.studies.reports.plots import draw_budgets, draw_distributions, draw_tradeoffs
from kljax.studies.reports.pools import make_pools
from kljax.studies.reports.rankings import make_rankings
from kljax.studies.reports.sweep_file import sweep_to_toml
from kljax.studies.reports.tables import Table, make_line, pivot_tables, points_table
from kljax.studies.reports.threats import threat_models
from kljax.studies.reports.tradeoffs import (
    make_tradeoffs,
    measured_words,
    read_runs,
    tradeoffs_table,
)
from kljax.studies.reports.trends import draw_trends, make_trends
from kljax.studies.reports.undefended import find_undefended
from kljax.studies.reports.values import values_of
from kljax.studies.reports.victim_table import victims_table
from kljax.studies.reports.victims import Victims, make_victims
from kljax.studies.store import Study

# Fields of a configuration that say what was studied.
FACTS = (
    "model",
    "data",
    "arms",
    "attack",
    "optimiser",
    "victims",
    "examples",
    "average_clients",
    "upload",
    "restarts",
    "steps",
    "weights",
    "init",
    "seed",
    "image_size",
    "precision",
)


class Progress(NamedTuple):
    """How far a study is, in cells."""

    cells: int
    finished: int
    failed: int
    partial: int
    victims: int  # attacked so far
    excluded: int
    illegal: int

    def text(self) -> str:
        """Writes it in a sentence or two."""
        if not self.cells:
            return "The study has no cells."
        if not self.victims and not self.failed:
            text = f"Nothing is finished yet, of {counted(self.cells, 'cell')}."
        else:
            text = (
                f"{self.finished} of {counted(self.cells, 'cell')} finished, "
                f"{counted(self.victims, 'victim')} attacked."
            )
        parts = [
            f"{self.partial} begun" if self.partial else "",
            f"{self.failed} failed" if self.failed else "",
        ]
        if any(parts):
            text += f" Of the others, {' and '.join(filter(None, parts))}."
        if self.excluded:
            text += f" The sweep file excludes {counted(self.excluded, 'cell')}."
        if self.illegal:
            text += (
                f" {counted(self.illegal, 'cell')} left out, whose attacker would know "
                "too little for what it does."
            )
        return text


class Contents(NamedTuple):
    """A report.

    Attributes:
      name: of the study.
      kinds: of inputs that it has.
      value: that tables are about.
      progress: how far the study is.
      facts: what all cells share, in words.
      varied: axis -> labels.
      threats: who, and sentences about them.
      pivots: the value by rows and columns.
      points: everything about every point.
      notes: what to know about these numbers.
      distributions: figure; None where there is nothing to draw.
      trends: figure of the value along numbers; None where none varies.
      comparisons: of arms on the same victims; None if there are none.
      rankings: of defences and of attacks, see `make_rankings`.
      consistency: of recovery over states; None if there is one state.
      budgets, budget_figure, budget_words: success against budget.
      tradeoffs, tradeoff_figure, tradeoff_notes: success against accuracy.
      measured: what accuracy is, see `measured_words`.
      matrices: one victim's image, attack by arm.
      gallery: reconstructions.
      victims: all that was tried on each; the first of them.
      convergence: figure of losses and scores on the way; None where none are kept.
      convergence_notes: why some attacks have no curve there.
      against: another study, held against this one; None for none.
      failures: of cells that are not finished.
      sweep: the sweep file.
      commands: that repeat study and report.
      versions: package -> version.
      device: that the manifest was made on.
    """

    name: str
    kinds: tuple[str, ...]
    value: str
    progress: Progress
    facts: dict[str, str]
    varied: dict[str, tuple[str, ...]]
    threats: list[tuple[str, list[str]]]
    pivots: list[Table]
    points: Table
    notes: list[str]
    distributions: Figure | None
    trends: Figure | None
    comparisons: Table | None
    rankings: list[Table]
    consistency: Table | None
    budgets: Table | None
    budget_figure: Figure | None
    budget_words: list[tuple[str, str]]
    tradeoffs: Table | None
    tradeoff_figure: Figure | None
    tradeoff_notes: list[str]
    measured: str
    matrices: list[Matrix]
    gallery: Gallery
    victims: Victims
    convergence: Figure | None
    convergence_notes: list[str]
    against: Against | None
    failures: list[dict[str, Any]]
    sweep: str
    commands: list[str]
    versions: dict[str, str]
    device: str

    @property
    def tables(self) -> list[Table]:
        """Lists all tables, for their files."""
        others = (self.comparisons, self.consistency, self.budgets, self.tradeoffs)
        found = [*self.pivots, self.points, *self.rankings]
        found += [t for t in others if t is not None]
        found += [self.against.table] if self.against else []
        return [*found, *([self.victims_table] if self.victims_table else [])]

    @property
    def victims_table(self) -> Table | None:
        """Tables the victims that have a page; None without any."""
        return victims_table(self.victims.shown) if self.victims.shown else None

    @property
    def figures(self) -> list[Figure]:
        """Lists all figures, for their files."""
        found = (self.distributions, self.trends, self.convergence)
        found += (self.budget_figure, self.tradeoff_figure)
        return [figure for figure in found if figure is not None]


def make_contents(
    study: Study,
    *,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    value: str | None = None,
    runs: Sequence[Path | str] = (),
    other: Study | None = None,
) -> Contents:
    """Computes all that a report says; see `kljax.studies.reports.write_report`."""
    kinds, values = kinds_of(study), values_of(study)
    default = default_value(kinds)
    value = default if value is None else value
    column = find_value(value, values)
    axes = axes_of(study.manifest) | input_axis(study.rows["input"].to_pylist())
    arrangement = arrange(axes, rows, columns)
    trainings = read_runs(runs)
    pools = make_pools(study, axes, arrangement.pooled)
    lines = [
        make_line(pool, value, undefended)
        for pool, undefended in zip(pools, find_undefended(pools, axes), strict=True)
    ]
    compared = compare_arms(pools, axes, value)
    curves = make_curves(pools, axes)
    tradeoffs = make_tradeoffs(pools, axes, trainings)
    open_failures = _open_failures(study)
    manifest, gallery = study.manifest, make_gallery(study, pools)
    recorded = make_convergence(study, pools, axes)
    against = None
    if other is not None:
        against = compare_studies(study, other, pools, column, values["success"])
    return Contents(
        name=manifest.get("name", study.folder.name),
        kinds=kinds,
        value=value,
        progress=_progress(study, open_failures),
        facts=_facts(manifest["cells"], kinds),
        varied={a.name: a.labels for a in axes.values() if len(a.labels) > 1},
        threats=threat_models(pools),
        pivots=pivot_tables(lines, axes, arrangement, column),
        points=points_table(lines, column),
        notes=[
            *result_notes(lines, arrangement, column, noun(kinds)),
            *damaged_notes(gallery),
        ],
        distributions=draw_distributions(pools, axes, column, kinds),
        trends=draw_trends(make_trends(pools, axes, value), column),
        comparisons=comparisons_table(compared, column, values["success"])
        if compared
        else None,
        rankings=make_rankings(pools, axes, find_accuracies(tradeoffs, axes)),
        consistency=consistency_table(pools, axes),
        budgets=budgets_table(curves) if curves else None,
        budget_figure=draw_budgets(curves, axes, kinds),
        budget_words=[(curve.name, curve.reads()) for curve in curves],
        tradeoffs=tradeoffs_table(tradeoffs) if tradeoffs else None,
        tradeoff_figure=draw_tradeoffs(tradeoffs, axes, kinds),
        tradeoff_notes=tradeoff_notes(pools, trainings),
        measured=measured_words(tradeoffs or trainings),
        matrices=make_matrices(study, pools, arrangement),
        gallery=gallery,
        victims=make_victims(study, pools, axes),
        convergence=draw_convergence(recorded.curves, arm_axis(axes).labels),
        convergence_notes=recorded.notes,
        against=against,
        failures=open_failures,
        sweep=sweep_to_toml(manifest.get("sweep", {})),
        commands=_commands(
            study, rows, columns, None if value == default else value, runs, other
        ),
        versions=manifest.get("versions", {}),
        device=str(manifest.get("device", "not known")),
    )


def _open_failures(study: Study) -> list[dict[str, Any]]:
    """Lists the failures that no later success has made good."""
    missing = {cell["id"] for cell in store.missing_cells(study)}
    return [failure for failure in study.failures if failure["cell"] in missing]


def _progress(study: Study, failures: list[dict[str, Any]]) -> Progress:
    have = store.finished_victims(study)
    missing = {cell["id"] for cell in store.missing_cells(study)}
    failed = {failure["cell"] for failure in failures}
    return Progress(
        cells=len(have),
        finished=len(have) - len(missing),
        failed=len(failed),
        partial=sum(1 for cell in missing - failed if have[cell]),
        victims=sum(have.values()),
        excluded=study.manifest.get("excluded", 0),
        illegal=study.manifest.get("illegal", 0),
    )


def _facts(cells: list[dict[str, Any]], kinds: Sequence[str]) -> dict[str, str]:
    """Lists the options that all cells share, that are set, and that are of use."""
    facts = {}
    for name in FACTS:
        values = [cell["config"].get(name) for cell in cells]
        if name == "image_size" and "image" not in kinds:
            continue
        if values and values[0] is not None and all(v == values[0] for v in values):
            listed = isinstance(values[0], (list, tuple))
            facts[name] = ", ".join(values[0]) if listed else str(values[0])
    return facts


def _commands(
    study: Study, rows, columns, value: str | None, runs, other: Study | None
) -> list[str]:
    words = ["kljax", "report", study.folder.name]
    for option, given in (("--rows", rows), ("--columns", columns)):
        words += [option, *given] if given else []
    words += ["--value", value] if value is not None else []
    words += ["--runs", *(_named(run, study) for run in runs)] if runs else []
    words += ["--against", _named(other.folder, study)] if other is not None else []
    return [
        shlex.join(["kljax", "sweep", "sweep.toml", "--out", study.folder.name]),
        shlex.join(words),
    ]


def _named(folder: Path | str, study: Study) -> str:
    """Names a folder as seen from where the study is, without what lies above."""
    own, beside = Path(folder).resolve(), study.folder.resolve().parent
    return str(own.relative_to(beside)) if own.is_relative_to(beside) else own.name
