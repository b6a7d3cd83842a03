"""The benchmark: attacks x defences x networks x weights, ranked with intervals.

    python experiments/benchmark.py [--tier first|trained|gpu|cluster]
        [--out runs/benchmark] [--hours 12] [--page experiments/benchmark.md]

A tier is a sweep file of experiments/presets: `first` is benchmark.toml, for hours of
two cores, `trained` benchmark_trained.toml, `gpu` and `cluster` are for one GPU and
for many. It is run as by `kljax sweep FILE --out OUT/NAME`, within a budget of
processor time, all calls together, which OUT/spent.json keeps. Called again it goes on
where it stopped, bit by bit. With `--hours 0` nothing is run, and the page is made of
what is there, wherever it was computed (`kljax sweep FILE --ray`). Before the tier
`trained` the run that its file names is trained, if it is not there.

The page has every ranking (`kljax.studies.reports.rankings`), the recovery consistency
over states, accuracies of OUT/run and costs of OUT/cost.json (what `python
experiments/defence_costs.py` writes), as far as they are there, and what was not run.
"""

import argparse
import itertools
import sys
from pathlib import Path
from typing import Any

from studies.contest_tables import accuracy_table, cost_table
from studies.parts import left, markdown, read_part, run_sweep, run_within, spent

from kljax.core.files import read_json, write_text
from kljax.studies import run_folder
from kljax.studies.builder.from_run import trained_name
from kljax.studies.reports import words
from kljax.studies.reports.contents import Contents, make_contents
from kljax.studies.reports.kinds import kinds_of
from kljax.studies.reports.tables import Table
from kljax.studies.store import Study

OUT = Path("runs/benchmark")
PRESETS = Path(__file__).parent / "presets"
TIERS = {
    "first": "benchmark",
    "trained": "benchmark_trained",
    "gpu": "benchmark_gpu",
    "cluster": "benchmark_cluster",
}
# Of the tier of trained states: every defence in one run, attacked before rounds that
# are kept. The rest of its options are those of `kljax train`.
TRAINING = {
    "model": "lenet",
    "data": "digits",
    "image_size": 16,
    "clients": 3,
    "rounds": 20,
    "batch": 16,
    "local_epochs": 5,
    "learning_rate": 0.05,
    "init": 0.5,
    "keep_rounds": (0, 2, 20),
}


def main():
    """Runs what is missing of a tier, within its budget, and writes its page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tier", choices=TIERS, default="first")
    parser.add_argument("--file", type=Path, help="another sweep file than the tier's")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--hours", type=float, default=12.0, help="of processor time")
    parser.add_argument("--page", type=Path, help="file to write; none to print it")
    options = parser.parse_args()
    file = options.file or PRESETS / f"{TIERS[options.tier]}.toml"
    if options.tier == "trained" and not options.file and options.out != OUT:
        parser.error(
            f"the file of --tier trained attacks {run_of(OUT)}: leave --out out"
        )
    fine, budget = True, left(options.out, options.hours)
    if options.tier == "trained" and options.file is None and budget > 0:
        fine = train(run_of(options.out), options.out, budget)
    if fine and left(options.out, options.hours) > 0:
        fine = run_sweep(file, options.out, left(options.out, options.hours))
    text = make_page(file, options.out)
    if options.page is None:
        print(text)
    else:
        write_text(options.page, text)
    if not fine:
        sys.exit(f"something failed in {file.stem}: see above, and the page")


def run_of(out: Path) -> Path:
    """Gives the folder of the training that the tier of trained states attacks."""
    return out / "run"


def train(folder: Path, out: Path, budget: float) -> bool:
    """Trains the defences of the tier of trained states, or goes on with it."""
    if folder.exists() and run_folder.read_summary(folder) is not None:
        return True
    command: list[Any] = ["-m", "kljax", "train", "--out", folder]
    for name, value in (TRAINING | {"arms": trained_arms(out)}).items():
        values = value if isinstance(value, tuple) else (value,)
        command += [f"--{name.replace('_', '-')}", *values]
    return run_within("run", command, out, budget)


def trained_arms(out: Path) -> tuple[str, ...]:
    """Lists the defences that the tier of trained states attacks."""
    study = read_part(PRESETS / f"{TIERS['trained']}.toml", out)
    return tuple(dict.fromkeys(map(_defence, study.manifest["cells"])))


def make_page(file: Path, out: Path) -> str:
    """Writes the rankings of a tier, and what they stand beside."""
    study = read_part(file, out)
    runs = [run_of(out)] if _finished(run_of(out)) else []
    contents = make_contents(study, runs=runs)
    kinds = kinds_of(study)
    texts = [
        f"# The benchmark: {file.stem}",
        f"Made by `python experiments/benchmark.py --file {_shown(file)}`. "
        f"{contents.progress.text()} {_hours(file, out)}",
        header_of(file),
        _what_was_not_run(study),
        "## How to read it",
        words.ranking(kinds),
    ]
    for table in contents.rankings:
        if table.records:
            texts += [f"## {table.title}", markdown(table)]
    empty = [table for table in contents.rankings if not table.records]
    if empty:
        names = "\n".join(f"- {table.title}" for table in empty)
        texts.append(f"## Rankings of which nothing was run\n\n{names}")
    if contents.consistency is not None:
        texts += consistency_texts(contents.consistency)
    texts += ["## Accuracy, and cost to the client", _costs(study, contents, out)]
    return "\n\n".join(filter(None, texts)) + "\n"


def header_of(file: Path) -> str:
    """Reads what a sweep file says of itself, its first comment, as it is."""
    lines = file.read_text(encoding="utf-8").splitlines()
    comment = list(itertools.takewhile(lambda line: line.startswith("#"), lines))
    if not comment:
        return ""
    return "What the file says:\n\n" + "\n".join(
        f"> {line.removeprefix('#').strip()}" for line in comment
    )


def consistency_texts(table: Table) -> list[str]:
    """Lays out what was run at every state, and counts what was not."""
    pairs = zip(table.lines, table.records, strict=True)
    run = [line for line, record in pairs if record["states"]]
    texts = [f"## {table.title}", words.CONSISTENCY]
    if run:
        texts.append(markdown(table._replace(lines=run)))
    missing = len(table.lines) - len(run)
    return [*texts, f"Run at fewer than two states: {missing} of {len(table.lines)}."]


def _shown(file: Path) -> str:
    parts = file.resolve().parts
    return "/".join(
        parts[parts.index("experiments") :] if "experiments" in parts else parts[-1:]
    )


def _hours(file: Path, out: Path) -> str:
    seconds = spent(out).get(file.stem)
    return "" if seconds is None else f"{seconds / 3600:.2f} processor hours."


def _what_was_not_run(study: Study) -> str:
    """Counts the cells that have no rows, by axis and point; nothing is hidden."""
    done = set(study.rows["cell"].to_pylist())
    counts: dict[str, dict[str, list[int]]] = {}
    for cell in study.manifest["cells"]:
        for axis, label in cell["point"].items():
            place = counts.setdefault(axis, {}).setdefault(label, [0, 0])
            place[0] += cell["id"] in done
            place[1] += 1
    lines = [
        f"- {axis}: "
        + ", ".join(f"{label} {run} of {all_}" for label, (run, all_) in at.items())
        for axis, at in counts.items()
    ]
    return "Cells with rows, by axis:\n\n" + "\n".join(lines)


def _costs(study: Study, contents: Contents, out: Path) -> str:
    accuracies = {}
    if contents.tradeoffs is not None:
        for record in contents.tradeoffs.records:
            accuracies[trained_name(record["arm"])] = 100 * record["accuracy"]
    costs = read_json(out / "cost.json", dict[str, Any]) or {}
    combinations = dict.fromkeys(map(_defence, study.manifest["cells"]))
    tables = []
    if accuracies:
        tables.append(accuracy_table(list(combinations), accuracies))
    if costs:
        tables.append(cost_table(list(combinations), costs))
    return "\n\n".join(tables) or "Not run."


def _defence(cell: dict[str, Any]) -> str:
    return trained_name(cell["config"]["arms"][0])


def _finished(folder: Path) -> bool:
    return folder.exists() and run_folder.read_summary(folder) is not None


if __name__ == "__main__":
    main()
