"""How many rows of a table does TabLeak read off the gradient of a perceptron?

What: `kljax.leak` with the attack `tableak` on the embedded tables, undefended, under
noise, and under the key-lock with its controls; batches of 1, 8 and 32.
Device: any. Trials: 8, 4 and 2 uploads of seed 0, that is 8, 32 and 64 rows.
Results: experiments/tables.md.

    python experiments/tables.py
    python experiments/tables.py --only ensemble --folder runs/tables

Each line is one study, whose rows are kept in the folder: a second start goes on where
the first was stopped, and prints only what is there.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from kljax import LeakConfig, leak, metrics, score_rows
from kljax.parallel.compilation import use_cache

UPLOADS = {1: 8, 8: 4, 32: 2, 128: 1}  # of each batch
COMMON = {"model": "perceptron", "attack": "tableak", "restarts": 10, "steps": 500}
ARMS = (
    "none",
    "gaussian-noise=0.001",
    "gaussian-noise=0.01",
    "bn-control",
    "plaintext-gates-as-lock",
    "keylock/known",
    "keylock/regress_gates",
    "keylock/unit",
)
# -- what is attacked: part -> name of the line -> what differs -----------------------
PARTS = {
    "arms": {
        f"{arm}, batch {batch}": {"arms": (arm,), "examples": batch}
        for batch in (1, 8, 32)
        for arm in ARMS
    },
    "tables": {
        f"{data}, batch {batch}": {"data": data, "examples": batch}
        for data in ("wine", "diabetes")
        for batch in (1, 8, 32)
    },
    "ensemble": {
        "1 start of 500": {"examples": 8, "restarts": 1},
        "10 starts of 500": {"examples": 8},
        "30 starts of 1500, as published": {
            "examples": 8,
            "restarts": 30,
            "steps": 1500,
        },
    },
}
SHOWN = (
    "cell_accuracy",
    "discrete_accuracy",
    "continuous_accuracy",
    "continuous_error",
)
HEAD = (
    "line",
    "rows",
    "cells [95 %]",
    "best floor",
    "all cells [95 %]",
    "recovered",
    "matched",
    "categories",
    "numbers",
    "error",
    "sure half",
    "unsure half",
)


def study(changes: dict[str, Any]) -> dict[str, Any]:
    """Runs one line; gives its rows, and how right its surest categories are."""
    victims = UPLOADS[changes["examples"]]
    options = {"data": "breast-cancer", "arms": ("none",)} | COMMON | changes
    result = leak(LeakConfig(**options, victims=victims))
    rows = score_rows(result)
    return {"rows": [_kept(row) for row in rows], "halves": halves(result, rows)}


def _kept(row: dict[str, Any]) -> dict[str, Any]:
    names = ("arm", "group", "exact_match", "outcome", "floor_cell_accuracy", *SHOWN)
    return {name: row[name] for name in names}


def halves(result, rows: list[dict[str, Any]]) -> list[float]:
    """Gives the share of right categories among the surest half, and the other.

    Guesses are paired with the truth; their confidence is in the guesses' own order.
    """
    (arm,), spec = result.arms, result.dataset.input_spec
    discrete = [n for n, column in enumerate(spec.columns) if column.is_discrete]
    of_arm = [row for row in rows if not row["arm"].startswith("floor/")]
    right, sure = [], []
    found = arm.attacked.reconstruction
    confidence = np.asarray(found.info["confidence"])
    batch = confidence.shape[1]
    for upload, guesses in enumerate(np.asarray(found.inputs)):
        order = metrics.assign(guesses, result.victims.inputs[upload])
        for example, place in enumerate(order):
            cells = of_arm[upload * batch + example]["cells_right"]
            right += [cells[n] == "1" for n in discrete]
            sure += [*confidence[upload, place, discrete]]
    ranked = np.asarray(right)[np.argsort(-np.asarray(sure), kind="stable")]
    return [float(half.mean()) for half in np.array_split(ranked, 2)]


def line(name: str, found: dict[str, Any]) -> list[str]:
    """Sums a study up."""
    rows = [row for row in found["rows"] if not row["arm"].startswith("floor/")]
    groups = [row["group"] for row in rows]
    cells = metrics.interval([row["cell_accuracy"] for row in rows], groups, rate=False)
    exact = metrics.interval([row["exact_match"] for row in rows], groups, rate=True)
    means = {n: np.mean([row[n] for row in rows]) for n in SHOWN}
    floor = np.mean([row["floor_cell_accuracy"] for row in rows])
    recovered = np.mean([row["outcome"] == "recovered" for row in rows])
    matched = np.mean([row["outcome"] in ("recovered", "ambiguous") for row in rows])
    sure = [f"{half:.0%}" for half in found["halves"]]
    return [
        name,
        str(len(rows)),
        span(cells),
        f"{floor:.0%}",
        span(exact),
        f"{recovered:.0%}",
        f"{matched:.0%}",
        *(f"{means[n]:.0%}" for n in SHOWN[1:3]),
        f"{means['continuous_error']:.3f}",
        *sure,
    ]


def span(found: metrics.Interval) -> str:
    """Writes an estimate with its interval."""
    if not np.isfinite(found.low):
        return f"{found.estimate:.0%} [?]"
    return f"{found.estimate:.0%} [{100 * found.low:.0f}-{100 * found.high:.0f}]"


def floor_lines(found: dict[str, Any]) -> list[list[str]]:
    """Sums the floors of a study up."""
    arms = dict.fromkeys(row["arm"] for row in found["rows"])
    lines = []
    for arm in arms:
        rows = [row for row in found["rows"] if row["arm"] == arm]
        if arm.startswith("floor/"):
            groups = [row["group"] for row in rows]
            cells = metrics.interval(
                [row["cell_accuracy"] for row in rows], groups, rate=False
            )
            means = [np.mean([row[n] for row in rows]) for n in SHOWN[1:]]
            exact = np.mean([row["exact_match"] for row in rows])
            shares = [f"{share:.0%}" for share in (exact, *means[:2])]
            written = [arm, str(len(rows)), span(cells), *shares, f"{means[2]:.3f}"]
            lines.append(written)
    return lines


def run(folder: Path, parts: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Runs what the folder has not yet; gives all of it by part and line."""
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, Any]] = {}
    for part, lines in PARTS.items():
        found[part] = {}
        for name, changes in lines.items():
            words = name.replace(", ", "-").replace(" ", "-").replace("/", "-")
            path = folder / f"{part}-{words}.json"
            if not path.exists() and part in parts:
                path.write_text(json.dumps(study(changes)))
            if path.exists():
                found[part][name] = json.loads(path.read_text())
    return found


PAGE = """\
# Tables: what gradients of a perceptron say of their rows

Made by `python experiments/tables.py`, which names what each line is.

A perceptron of two hidden layers of 100, drawn afresh for each upload, is trained on
rows of `breast-cancer`: 20 numbers and 10 quantities that were cut at their quartiles.
TabLeak looks for them in {restarts} starts of {steps} evaluations, whose median it
takes; labels are given. A cell is right if its category is, or its number is within
.319 of its column's standard deviation. *best floor*: cells of the best row made
without any gradient, chosen by the truth. *recovered*: at least half of the cells are
right, and at most half as many wrong as there. *matched*: rows of uploads whose
gradient was matched, and those recovered. *sure half*: right categories in the half
of the cells on which the starts agree most, by entropy. Uploads are few, so intervals
are wide: 8 of one row, 4 of 8, 2 of 32. Those of batches are by upload.

{arms}

Floors of the batches of 8 of `breast-cancer`:

{floors}

## Other tables

Undefended, the same attack. `diabetes` has one discrete column, `wine` three classes.

{tables}

## The ensemble

Batches of 8 rows of `breast-cancer`, undefended.

{ensemble}
"""


def main() -> None:
    """Runs what is asked for, and prints the page of what is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/tables"))
    parser.add_argument("--only", nargs="*", default=[*PARTS], choices=[*PARTS])
    given = parser.parse_args()
    use_cache()
    found = run(given.folder, given.only)
    tables = {part: table(lines) for part, lines in found.items()}
    eight = found["arms"].get("none, batch 8")
    head = ("floor", "rows", "cells [95 %]", "all cells", "categories", "numbers")
    floors = floor_lines(eight) if eight else []
    drawn = tabulate(floors, (*head, "error"), tablefmt="github", disable_numparse=True)
    sizes = {name: COMMON[name] for name in ("restarts", "steps")}
    print(PAGE.format(floors=drawn, **sizes, **tables), end="")


def table(lines: dict[str, dict[str, Any]]) -> str:
    """Draws the lines of a part."""
    written = [line(name, found) for name, found in lines.items()]
    return tabulate(written, HEAD, tablefmt="github", disable_numparse=True)


if __name__ == "__main__":
    main()
