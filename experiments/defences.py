"""The table of all defences: accuracy, leakage by who knows the defence, and cost.

    python experiments/defences.py [--out runs/defences] [--hours 6] [--only PART ...]
        [--strengths all|middle] [--defences NAME ...] [--tables experiments/defences]

Every defence of the catalogue, at three strengths, on the datasets of
experiments/defences/*.toml, where networks are fresh, and after 20 rounds. Of each
dataset there are these parts:

- DATA-fresh-METHOD, DATA-trained-METHOD: who attacks how
  (experiments/studies/contests.py). METHOD ``search`` is the preset `matching`,
  ``density`` the preset `likelihood`, ``closed`` the preset `peeling`, ``learned`` the
  preset `learned`, trained under the defence at the weights of one network for all
  victims, ``inputs`` is `matching` through all steps in which inputs are obscured.
- DATA-training: each defence is trained alone, from the same weights on the same
  batches, and the state after the last round is kept, to be attacked. What was not
  trained is not attacked.
- DATA-cost: seconds and bytes of a client's step (experiments/defence_costs.py).

`--strengths middle` runs, trains and tables each defence at its middle strength alone;
`--defences` runs and trains some, and tables all. What was begun so may be gone on
with: a study only grows.

The budget is of processor time, all parts and all calls together, written down in
OUT/spent.json. Called again, the driver goes on where it stopped. What did not fit is
printed as "not run". A defence that the catalogue has gained is a cell that is missing.
`--tables` writes DATA-fresh.md, DATA-trained.md, DATA-training.md, DATA-cost.md and
pictures; of ``learned`` and ``inputs``, which have a budget of their own, a file each,
DATA-fresh-learned.md. What was not begun in OUT keeps its file, so that parts may be
run in different places and at different times. What was computed stands in the tables,
also at strengths that this call did not ask for. Conclusions: experiments/defences.md.
"""

import argparse
import functools
import sys
import tomllib
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from studies.contest_figures import draw_attackers, draw_costs, draw_strengths
from studies.contest_tables import (
    NOTHING,
    Rows,
    accuracy_table,
    cost_table,
    leakage_table,
    rows_of,
)
from studies.contests import METHODS, Contest, all_contests, at_strengths
from studies.parts import left, read_part, run_sweep, run_within, spent

from kljax.core.files import read_json, write_text
from kljax.defences.catalogue import KINDS
from kljax.studies import run_folder
from kljax.studies.builder.study import build_study
from kljax.studies.config import LeakConfig
from kljax.studies.reports.sweep_file import sweep_to_toml
from kljax.studies.store.manifest import read_manifest

HERE = Path(__file__).parent
ORDER = ("digits", "fashion_mnist", "faces", "photos")
DATASETS = {
    name: tomllib.loads((HERE / "defences" / f"{name}.toml").read_text("utf-8"))
    for name in ORDER
}
ATTACKS = {
    "search": "matching",
    "density": "likelihood",
    "closed": "peeling",
    "learned": "learned",
    "inputs": "matching",
}
# Those of experiments/learned_inversion.md, of 500 steps.
LEARNED = ["width=512", "hashed=4096", "uploads=64", "learning_rate=1e-3"]
# What a method needs beside.
FIELDS = {"learned": {"weights": "shared", "attack_options": LEARNED}}

TITLES = {
    "fresh": "Leakage under defences, fresh networks",
    "fresh-learned": "Leakage to who was trained under each defence, one fresh network",
    "fresh-inputs": "Leakage to who goes back through inputs, fresh networks",
    "trained": "Leakage under defences, trained networks",
    "trained-inputs": "Leakage to who goes back through inputs, trained networks",
    "training": "Accuracy under defences",
    "cost": "What defences cost a client",
}
MIDDLE = "Each defence at its middle strength alone (`--strengths middle`)."
AND_MORE = (
    "Each defence at its middle strength (`--strengths middle`), and what else was run."
)
APART = ("learned", "inputs")  # methods with a table of their own
DEAR = ("inputs",)  # methods that go back through many steps at each evaluation
# Methods that simulate a client: of a run they are refused, for its local steps.
FRESH_ALONE = ("learned",)
TEST = "own"  # accuracy with what a client itself has


class Part(NamedTuple):
    """A piece of work.

    Attributes:
      data: name of the dataset's file.
      job: ``fresh``, ``trained``, ``training`` or ``cost``.
      method: of an attack, see `studies.contests`; "" of the others.
    """

    data: str
    job: str
    method: str = ""

    @property
    def name(self) -> str:
        """Names it on the command line, and its folder."""
        return "-".join(filter(None, self))

    @property
    def section(self) -> str:
        """Names the table in which it stands, out of `TITLES`."""
        return f"{self.job}-{self.method}" if self.method in APART else self.job


def parts() -> list[Part]:
    """Lists the parts in order of importance; only what was trained is attacked so."""
    fresh = [("fresh", method) for method in METHODS if method not in DEAR]
    of_runs = [method for method in METHODS if method not in FRESH_ALONE]
    trained = [("training", ""), *(("trained", method) for method in of_runs)]
    dear = [("fresh", method) for method in METHODS if method in DEAR]
    order = [*fresh, ("cost", ""), *trained, *dear]
    return [
        Part(data, *job)
        for data in DATASETS
        for job in order
        if job not in trained or "train" in DATASETS[data]
    ]


def sweep_file(
    part: Part, out: Path, *, middle: bool = False, names: Collection[str] | None = None
) -> Path:
    """Writes the sweep file of an attack, from the catalogue as it is.

    Args:
      part: an attack.
      out: folder of the parts.
      middle: at the middle strength of each defence alone.
      names: of defences; None for all.
    """
    source = DATASETS[part.data]
    fixed = source["leak"] | {"attack": ATTACKS[part.method]}
    fixed |= FIELDS.get(part.method, {})
    if part.job == "fresh":
        fixed = source["both"] | fixed
    else:
        # A run says what network and data are.
        fixed |= {"round": source["train"]["rounds"], "seed": source["both"]["seed"]}
    points = points_of(part, out, middle=middle, names=names)
    axes = {"arm": points | begun(part, out)}
    file = out / "sweeps" / f"{part.name}.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, sweep_to_toml({"fixed": fixed, "axes": axes}))
    return file


def points_of(
    part: Part, out: Path, *, middle: bool, names: Collection[str] | None = None
) -> dict[str, dict[str, str]]:
    """Lists what there is to attack; of trainings, those that are finished."""
    chosen = possible(part, middle=middle, names=names)
    if part.job == "fresh":
        return {contest.arm: {"arm": contest.arm} for contest in chosen}
    return {
        c.arm: of_run(part.data, c, out)
        for c in chosen
        if is_trained(training_folder(part.data, c.combination, out))
    }


def possible(
    part: Part, *, middle: bool = False, names: Collection[str] | None = None
) -> list[Contest]:
    """Lists the contests of a part, without those that are refused."""
    model = DATASETS[part.data]["both"]["model"]
    own = [c for c in all_contests(middle=middle) if c.method == part.method]
    # To ask whether one is refused takes a second, so that only these are asked.
    own = [c for c in own if names is None or c.defence in names]
    return [contest for contest in own if not refusal(model, contest)]


def begun(part: Part, out: Path) -> dict[str, dict[str, Any]]:
    """Reads the arms that a study has, which only grows: the catalogue may have less.

    What is no contest any more stands in no table.
    """
    folder = out / part.name
    if not (folder / "manifest.json").exists():
        return {}
    return read_manifest(folder)["sweep"]["axes"]["arm"]


def of_run(data: str, contest: Contest, out: Path) -> dict[str, str]:
    """Gives the fields of a cell that attacks a trained client."""
    return {
        "arm": contest.arm,
        "from_run": str(training_folder(data, contest.combination, out)),
    }


def is_trained(folder: Path) -> bool:
    """Tells whether a training is finished."""
    return folder.exists() and run_folder.read_summary(folder) is not None


def training_folder(data: str, combination: str, out: Path) -> Path:
    """Gives the folder of a training, a name that every system can have."""
    name = combination.replace("=", "_").replace(",", "_")
    return out / f"{data}-training" / name


def refusal(model: str, contest: Contest) -> str:
    """Says why a contest cannot be; '' if it can. Strengths make no difference."""
    arm = contest.arm.removeprefix(contest.combination)
    (middle,) = at_strengths(contest.defence, middle=True)
    return _refusal(model, contest.method, middle + arm)


@functools.cache
def _refusal(model: str, method: str, arm: str) -> str:
    fields = {"attack": ATTACKS[method], **FIELDS.get(method, {})}
    try:
        build_study(
            LeakConfig(model=model, arms=(arm,), image_size=16, victims=1, **fields)
        )
    except ValueError as error:
        return str(error)
    return ""


def combinations(*, middle: bool, names: Collection[str] | None = None) -> list[str]:
    """Lists what is trained and measured: defences at their strengths."""
    return [
        each
        for name in KINDS
        if names is None or name in names
        for each in at_strengths(name, middle=middle)
    ]


def trainings(
    data: str, out: Path, *, middle: bool = False, names: Collection[str] | None = None
) -> Iterator[tuple[Path, list[Any]]]:
    """Lists what is to be trained: the folder, and the command."""
    fields = DATASETS[data]["both"] | DATASETS[data]["train"]
    fields |= {"keep_rounds": fields["rounds"]}
    options = [
        word
        for name, value in fields.items()
        for word in (f"--{name.replace('_', '-')}", value)
    ]
    for combination in combinations(middle=middle, names=names):
        folder = training_folder(data, combination, out)
        command = ["-m", "kljax", "train", *options]
        yield folder, [*command, "--arms", combination, "--out", folder]


def train(
    part: Part, out: Path, hours: float, middle: bool, names: Collection[str] | None
) -> bool:
    """Trains what is missing, one defence after another, within the budget."""
    fine = True
    for folder, command in trainings(part.data, out, middle=middle, names=names):
        seconds = left(out, hours)
        if seconds <= 0:
            break
        if not is_trained(folder):
            fine &= run_within(part.name, command, out, seconds)
    return fine


def run(
    part: Part,
    out: Path,
    hours: float,
    *,
    middle: bool = False,
    names: Collection[str] | None = None,
) -> bool:
    """Runs what is missing of a part; gives False if some of it failed.

    Costs are measured of all, at all strengths: one more takes seconds.
    """
    if part.job == "training":
        return train(part, out, hours, middle, names)
    if part.job == "cost":
        command = [HERE / "defence_costs.py", HERE / "defences" / f"{part.data}.toml"]
        command += [out / f"{part.name}.json"]
        return run_within(part.name, command, out, left(out, hours))
    if not points_of(part, out, middle=middle, names=names):  # nothing was trained
        return True
    file = sweep_file(part, out, middle=middle, names=names)
    return run_sweep(file, out, left(out, hours))


def accuracies(data: str, out: Path) -> dict[str, float]:
    """Reads what was trained: combination -> test accuracy in %."""
    found = {}
    for combination in combinations(middle=False):
        folder = training_folder(data, combination, out)
        if is_trained(folder):
            (own,) = run_folder.read_summary(folder)["accuracy"].values()
            found[combination] = 100 * own[TEST]["mean"]
    return found


def parts_of(data: str, section: str) -> list[Part]:
    """Lists the parts that a table of attacks is made of."""
    return [p for p in parts() if (p.data, p.section) == (data, section)]


def read_leakage(
    data: str, section: str, out: Path, *, middle: bool = False
) -> tuple[list[Contest], Rows]:
    """Reads what attackers of a dataset found, as far as they were run.

    Args:
      data: name of the dataset's file.
      section: of `TITLES`, attacks.
      out: folder of the parts.
      middle: of other strengths than the middle one what was run alone.

    Returns:
      The contests that there are, in the order of the catalogue; rows of each method.
    """
    mine = parts_of(data, section)
    rows = {
        part.method: rows_of(read_part(sweep_file(part, out, middle=middle), out))
        if (out / part.name).exists()
        else NOTHING
        for part in mine
    }
    seen = {method: set(frame["arm"]) for method, frame in rows.items()}
    found = [
        contest
        for part in mine
        for contest in possible(part)
        if not middle or is_middle(contest) or contest.arm in seen[part.method]
    ]
    order = list(KINDS)
    return sorted(found, key=lambda contest: order.index(contest.defence)), rows


def is_middle(contest: Contest) -> bool:
    """Tells whether a defence is at its middle strength."""
    return contest.combination in at_strengths(contest.defence, middle=True)


def read_costs(data: str, out: Path) -> dict[str, Any]:
    """Reads what was measured of a dataset: combination -> cost."""
    return read_json(out / f"{data}-cost.json", dict[str, Any]) or {}


def write_pages(data: str, out: Path, *, middle: bool = False) -> dict[str, str]:
    """Writes the tables of a dataset, those of which something was begun.

    Args:
      data: name of the dataset's file.
      out: folder of the parts.
      middle: of other strengths than the middle one what was run alone.

    Returns:
      Texts by section, whose names are those of `TITLES`.
    """
    text = (HERE / "defences" / f"{data}.toml").read_text("utf-8")
    first = text.split("\n\n")[0].replace("# ", "")
    tables, alone = {}, {}
    for section in sections_begun(data, out):
        contests, rows = read_leakage(data, section, out, middle=middle)
        if not all(frame.empty for frame in rows.values()):
            taken = spent_on([part.name for part in parts_of(data, section)], out)
            tables[section] = f"{leakage_table(contests, rows)}\n\n{taken}"
            alone[section] = all(map(is_middle, contests))
    if accuracy := accuracies(data, out):
        middles = combinations(middle=True)
        there = [
            each
            for each in combinations(middle=False)
            if not middle or each in middles or each in accuracy
        ]
        taken = spent_on([f"{data}-training"], out)
        tables["training"] = f"{accuracy_table(there, accuracy)}\n\n{taken}"
        alone["training"] = there == middles
    if middle:
        tables = {
            name: f"{MIDDLE if alone[name] else AND_MORE}\n\n{table}"
            for name, table in tables.items()
        }
    if costs := read_costs(data, out):
        tables["cost"] = cost_table(combinations(middle=False), costs)
    return {
        name: f"# {TITLES[name]} on {data}\n\n{first}\n\n{table}\n"
        for name, table in tables.items()
    }


def sections_begun(data: str, out: Path) -> list[str]:
    """Lists the tables of attacks on a dataset of which a part was begun."""
    begun = {p.section for p in parts() if p.data == data and (out / p.name).exists()}
    return [name for name in TITLES if name in begun and name != "training"]


def spent_on(names: Iterable[str], out: Path) -> str:
    """Says what parts took together."""
    taken = sum(spent(out).get(name, 0.0) for name in names)
    return f"{taken / 3600:.2f} processor hours."


def draw(data: str, out: Path, folder: Path, *, middle: bool = False) -> None:
    """Draws what there is to draw of a dataset."""
    for section in sections_begun(data, out):
        if section not in ("fresh", "trained"):
            continue
        contests, rows = read_leakage(data, section, out, middle=middle)
        draw_attackers(contests, rows, folder / f"{data}-{section}-attackers.png")
        # Of one strength there is nothing to compare.
        if not all(map(is_middle, contests)):
            draw_strengths(contests, rows, folder / f"{data}-{section}-strengths.png")
    draw_costs(read_costs(data, out), folder / f"{data}-costs.png")


def main():
    """Runs what is missing, as far as the budget goes, and prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [part.name for part in parts()]
    parser.add_argument("--out", type=Path, default=Path("runs/defences"))
    parser.add_argument("--hours", type=float, default=6.0, help="of processor time")
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--strengths", choices=("all", "middle"), default="all")
    parser.add_argument("--defences", nargs="+", choices=KINDS, metavar="NAME")
    parser.add_argument("--tables", type=Path, help="folder for a file per dataset")
    options = parser.parse_args()
    middle = options.strengths == "middle"
    failed = []
    for part in parts():
        if part.name in options.only and left(options.out, options.hours) > 0:
            chosen = {"middle": middle, "names": options.defences}
            if not run(part, options.out, options.hours, **chosen):
                failed.append(part.name)
    for data in dict.fromkeys(p.data for p in parts() if p.name in options.only):
        pages = write_pages(data, options.out, middle=middle)
        print("\n".join(pages.values()) or f"{data}: nothing was run.")
        if options.tables:
            options.tables.mkdir(parents=True, exist_ok=True)
            for section, text in pages.items():
                write_text(options.tables / f"{data}-{section}.md", text)
            draw(data, options.out, options.tables, middle=middle)
    if failed:
        sys.exit(f"something failed in {', '.join(failed)}: see above")


if __name__ == "__main__":
    main()
