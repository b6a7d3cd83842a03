"""The paper's Table 6 with its controls: all cells of a sweep file, beside the paper's.

    python experiments/table6.py [--file experiments/presets/table6_short.toml]
        [--out runs/table6] [--hours 2]

Runs the sweep file as `kljax sweep FILE --out OUT/NAME` does, within a budget of
processor time that all calls share, and prints what is there; with `--hours 0` nothing
is run. Called again it goes on where it stopped.

Figures are the paper's: RMSE on [0, 255], which it calls MSE, and SSIM; means over
victims with intervals of 95 %. Of its "PSNR" and LPIPS, which are not comparable with
anybody's, nothing is printed. recovered: as `kljax.metrics.outcomes` says, of all
victims, with those recovered up to contrast behind a plus. unsolved: neither that, nor
was the gradient matched, so that the attack failed and says nothing for a defence; the
rest matched the gradient with another image.
Device: any. Trials: victims of the file, one seed. Results: experiments/table6.md.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from studies.parts import left, read_part, run_sweep
from studies.published import TABLE_6
from tabulate import tabulate

from kljax.metrics import interval
from kljax.studies.store import FLOOR

PRESETS = Path(__file__).parent / "presets"
LOCK = {False: "without the lock", True: "with it"}
# Rows of the same table that `TABLE_6` leaves out: (attack and network, data, lock) ->
# RMSE, SSIM.
OTHERS = {
    ("grnn, ResNet-20", "MNIST", False): (1.62, 0.998),
    ("grnn, ResNet-20", "MNIST", True): (101.28, 0.010),
    ("grnn, ResNet-20", "CIFAR-10", False): (9.12, 0.984),
    ("grnn, ResNet-20", "CIFAR-10", True): (86.42, 0.051),
    ("grnn, ResNet-20", "CIFAR-100", False): (20.79, 0.963),
    ("grnn, ResNet-20", "CIFAR-100", True): (99.25, 0.032),
    ("grnn, ResNet-18", "ILSVRC", False): (13.26, 0.932),
    ("grnn, ResNet-18", "ILSVRC", True): (62.87, 0.273),
    ("ggl, ResNet-18", "ILSVRC", False): (63.59, 0.231),
    ("ggl, ResNet-18", "ILSVRC", True): (87.22, 0.180),
}
HEAD = (
    "attacker",
    "norm",
    "arm",
    "RMSE [95 %]",
    "SSIM [95 %]",
    "recovered",
    "unsolved",
)


def main():
    """Runs what is missing within the budget, and prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--file", type=Path, default=PRESETS / "table6_short.toml")
    parser.add_argument("--out", type=Path, default=Path("runs/table6"))
    parser.add_argument("--hours", type=float, default=2.0, help="of processor time")
    options = parser.parse_args()
    budget = left(options.out, options.hours)
    fine = budget <= 0 or run_sweep(options.file, options.out, budget)
    study = read_part(options.file, options.out)
    rows = study.rows.to_pylist()
    print(f"The paper's:\n\n{published()}")
    for data in dict.fromkeys(c["point"]["data"] for c in study.manifest["cells"]):
        cells = [c for c in study.manifest["cells"] if c["point"]["data"] == data]
        print(f"\n{data}:\n\n{measured(cells, rows)}")
    if not fine:
        raise SystemExit("some cells failed: see above")


def published() -> str:
    """Lays out the rows of the paper."""
    lines = {k: (rmse, alike) for k, (rmse, _, alike) in TABLE_6.items()} | OTHERS
    pairs = dict.fromkeys((attack, data) for attack, data, _ in lines)
    head = ["attack", "data"]
    head += [f"{name} {LOCK[lock]}" for name in ("RMSE", "SSIM") for lock in LOCK]
    body = [
        [
            f"{attack}, LeNet" if "," not in attack else attack,
            data,
            *(f"{lines[attack, data, lock][0]:.2f}" for lock in LOCK),
            *(f"{lines[attack, data, lock][1]:.3f}" for lock in LOCK),
        ]
        for attack, data in pairs
    ]
    return tabulate(body, head, tablefmt="pipe", disable_numparse=True)


def measured(cells: list[dict], rows: list[dict]) -> str:
    """Lays out the cells of one dataset, and its floors."""
    ids = {cell["id"] for cell in cells}
    here = [row for row in rows if row["cell"] in ids]
    body = []
    for cell in sorted(cells, key=_place(cells)):
        own = [
            row
            for row in here
            if row["cell"] == cell["id"] and not row["arm"].startswith(FLOOR)
        ]
        point = cell["point"]
        start = (point["attacker"], point["norm"], point["arm"])
        body.append((*start, *(scores(own) if own else ["not run"] + 3 * ["-"])))
    floors = [row for row in here if row["arm"].startswith(FLOOR)]
    for name in dict.fromkeys(row["arm"] for row in floors):
        # Cells of other attackers have the same victims, and the same floors.
        own = {r["victim"]: r for r in floors if r["arm"] == name}.values()
        body.append(("-", "-", name, *scores(list(own))[:2], "-", "-"))
    return tabulate(body, HEAD, tablefmt="pipe", disable_numparse=True)


def scores(rows: list[dict]) -> list[str]:
    """Writes what was found of victims."""
    found = [row["outcome"] for row in rows]
    affine = found.count("recovered_affine")
    more = f" + {affine}" if affine else ""
    unsolved = found.count("unsolved") + found.count("diverged")
    return [
        _mean(rows, "rmse255", 1),
        _mean(rows, "ssim", 3),
        f"{found.count('recovered')}{more} of {len(rows)}",
        f"{unsolved} of {len(rows)}",
    ]


def _mean(rows: list[dict], column: str, digits: int) -> str:
    values = np.array([row[column] for row in rows])
    if not np.isfinite(values).all():
        return "not finite"
    found = interval(values, [row["group"] for row in rows], rate=False)
    mean, low, high = (f"{x:.{digits}f}" for x in found[:3])
    return mean if low == "nan" else f"{mean} [{low}, {high}]"


def _place(cells: list[dict]) -> Callable[[dict], tuple[int, ...]]:
    """Orders cells by attacker, norm, and arm, each in the order of the file."""
    axes = ("attacker", "norm", "arm")
    names = [list(dict.fromkeys(c["point"][axis] for c in cells)) for axis in axes]
    return lambda cell: tuple(
        known.index(cell["point"][axis])
        for axis, known in zip(axes, names, strict=True)
    )


if __name__ == "__main__":
    main()
