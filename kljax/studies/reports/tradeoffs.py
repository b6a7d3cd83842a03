"""Trade-offs: what a defence costs in accuracy, beside what an attack still gets.

Accuracy is what `kljax.core.targets.TargetSpec.measure` names: of numbers it is R2.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kljax.studies import run_folder
from kljax.studies.builder.from_run import trained_name
from kljax.studies.reports.axes import Axis, arm_axis
from kljax.studies.reports.estimates import Estimate, estimate, sample_deviation
from kljax.studies.reports.kinds import kind_of
from kljax.studies.reports.pairing import is_gated, network_differences, training_of
from kljax.studies.reports.pools import Pool
from kljax.studies.reports.successes import (
    names_of,
    success_entries,
    success_header,
    success_record,
)
from kljax.studies.reports.tables import Entry, Table, at_words
from kljax.studies.reports.values import capitalised, known
from kljax.studies.reports.verdicts import Outcomes, count_outcomes

TEST = "own"  # accuracy with the client's own private key and lock


class Tradeoff(NamedTuple):
    """One defence: its accuracy, and the success of one attack on it.

    Attributes:
      arm: point of the axis that sets the arm.
      defence: as it was trained.
      point: where the attack stands on the other axes.
      runs: names of the folders.
      accuracy: mean over the runs of the test accuracy with right gates.
      deviation: sample standard deviation over runs; NaN for fewer than two.
      success, score: of the attack; the score is the primary one of its inputs.
      outcomes: of the attack.
      measure: what `accuracy` is.
    """

    arm: str
    defence: str
    point: dict[str, str]
    runs: tuple[str, ...]
    accuracy: float
    deviation: float
    success: Estimate
    score: Estimate
    outcomes: Outcomes
    measure: str = run_folder.ACCURACY

    @property
    def name(self) -> str:
        where = at_words(self.point)
        return f"{self.arm} at {where}" if where else self.arm


class Run(NamedTuple):
    """A finished training."""

    folder: Path
    config: dict[str, Any]
    accuracy: dict[str, float]  # by arm
    measure: str = run_folder.ACCURACY  # what that is


def read_runs(folders: Sequence[Path | str]) -> list[Run]:
    """Reads the accuracies of trainings.

    Raises:
      FileNotFoundError: for a folder without a run.
      DamagedFile: for a file of a run that is not what was written.
      ValueError: for something else than a run of `kljax train`, or one that is not
        finished; the folder is named.
    """
    return [_read(Path(folder)) for folder in folders]


def _read(folder: Path) -> Run:
    run_folder.read_config(folder, newer_ok=True)  # refuses other jobs
    summary = run_folder.read_summary(folder)
    if summary is None:
        raise ValueError(
            f"run {str(folder)!r} is not finished: go on with it first, or leave it out"
        )
    accuracy = {
        arm: tests[TEST]["mean"]
        for arm, tests in summary["accuracy"].items()
        if TEST in tests and tests[TEST]["mean"] is not None
    }
    return Run(folder, summary["config"], accuracy, run_folder.measured(summary))


def make_tradeoffs(
    pools: Sequence[Pool], axes: dict[str, Axis], runs: Sequence[Run]
) -> list[Tradeoff]:
    """Pairs every attacked arm with the trainings of its defence.

    A training counts if it trained the same arm, as written, of the same network, see
    `pairing`. Where a run was attacked, its own accuracy counts and no
    other. Trainings that differ in more than the seed make trade-offs of their own.
    """
    arm = arm_axis(axes).name
    tradeoffs = []
    for pool in pools:
        if not len(pool.rows):
            continue
        defence = _defence(pool)
        fitting = [run for run in runs if not _why_apart(run, pool)]
        if not fitting:
            continue
        success, score = estimate(pool, "success"), estimate(pool, pool.primary)
        outcomes = count_outcomes(pool)
        for repetitions in _alike(fitting):
            accuracies = [run.accuracy[defence] for run in repetitions]
            tradeoffs.append(
                Tradeoff(
                    pool.point[arm],
                    defence,
                    {axis: at for axis, at in pool.point.items() if axis != arm},
                    tuple(run.folder.name for run in repetitions),
                    sum(accuracies) / len(accuracies),
                    sample_deviation(accuracies),
                    success,
                    score,
                    outcomes,
                    repetitions[0].measure,
                )
            )
    return tradeoffs


def unpaired(pools: Sequence[Pool], runs: Sequence[Run]) -> list[str]:
    """Lists the attacked arms that no training tells the accuracy of, and why."""
    lacking: dict[str, None] = {}
    for pool in pools:
        reasons = {run.folder.name: _why_apart(run, pool) for run in runs}
        if len(pool.rows) and all(reasons.values()):
            why = "; ".join(f"{name}: {', '.join(r)}" for name, r in reasons.items())
            lacking[f"{_defence(pool)} ({why})"] = None
    return list(lacking)


def _why_apart(run: Run, pool: Pool) -> list[str]:
    """Says why a training tells nothing of what was attacked; nothing if it does."""
    defence = _defence(pool)
    if defence not in run.accuracy:
        return ["it did not train this arm"]
    cells = [cell["config"] for cell in pool.cells]
    attacked = {config.get("from_run") for config in cells} - {None}
    if not attacked:
        gated = is_gated(defence)
        kind = kind_of(pool.first_row)
        return network_differences(cells[0], run.config, gated, kind)
    if any(Path(path).resolve() == run.folder.resolve() for path in attacked):
        return []
    return [f"attacked was {', '.join(sorted(attacked))}"]


def _defence(pool: Pool) -> str:
    return trained_name(pool.cells[0]["config"]["arms"][0])


def _alike(runs: Sequence[Run]) -> list[list[Run]]:
    """Puts runs together that differ in their seed alone."""
    together: dict[str, list[Run]] = {}
    for run in runs:
        together.setdefault(training_of(run.config), []).append(run)
    return list(together.values())


def measured_words(of: Iterable[Tradeoff | Run]) -> str:
    """Names what is measured of networks: accuracy, R2, or both."""
    return " or ".join(dict.fromkeys(one.measure for one in of)) or run_folder.ACCURACY


def tradeoffs_table(tradeoffs: Sequence[Tradeoff]) -> Table:
    """Tables all trade-offs."""
    measured = measured_words(tradeoffs)
    axes = tuple(tradeoffs[0].point) if tradeoffs else ()
    scores = [tradeoff.score for tradeoff in tradeoffs]
    header = (
        "arm",
        *axes,
        "trained as",
        "runs",
        measured,
        *success_header([tradeoff.success for tradeoff in tradeoffs], scores),
    )
    lines = [
        (
            Entry(tradeoff.arm),
            *map(Entry, tradeoff.point.values()),
            Entry(tradeoff.defence),
            Entry(", ".join(tradeoff.runs), len(tradeoff.runs)),
            Entry(_accuracy_text(tradeoff), tradeoff.accuracy),
            *success_entries(tradeoff.success, tradeoff.score, tradeoff.outcomes),
        )
        for tradeoff in tradeoffs
    ]
    return Table(
        "tradeoffs",
        f"{capitalised(measured)} of each defence, and success of each attack on it",
        header,
        lines,
        [_record(tradeoff, names_of(scores)) for tradeoff in tradeoffs],
    )


def _accuracy_text(tradeoff: Tradeoff) -> str:
    text = f"{tradeoff.accuracy:.1%}"
    if math.isfinite(tradeoff.deviation):
        text += f" ± {100 * tradeoff.deviation:.1f} points"
    return text


def _record(tradeoff: Tradeoff, names: Sequence[str]) -> dict[str, Any]:
    return {
        "arm": tradeoff.arm,
        **tradeoff.point,
        "defence": tradeoff.defence,
        "runs": " ".join(tradeoff.runs),
        "measure": tradeoff.measure,
        "accuracy": tradeoff.accuracy,
        "accuracy_deviation": known(tradeoff.deviation),
        **success_record(tradeoff.success, tradeoff.score, names),
        **tradeoff.outcomes._asdict(),
    }
