"""FedKL's Table 1: is accuracy kept, and is the model useless without the private key?

    python experiments/accuracy.py PRESET [--out runs/accuracy] [--seeds 5]
        [--rate RATE] [--rounds N] [--drops R ...] [--arms ARM ...]
        [--data-dir DIR] [--table FILE]

A preset is a training configuration (the paper's, or one that fits a small machine)
and the numbers that the paper prints for it. Every seed is one run of `kljax.train` in
a folder of its own, OUT/PRESET/SEED: a run that was killed goes on, a finished one is
read. The table holds, for every test of `kljax.evaluation` and every arm, the mean over
seeds and the standard deviation between them.

Arms: `none` is FedAvg on our network without a lock; `bn-control` has the norm layer
that the lock brings along and nothing else; `plaintext-gates` is the matched control,
the same gates learnt in public; `keylock` is FedKL.

Departures from the official code, in every preset: 1,000 training examples are held
back for outsiders who re-fit gates; a last partial batch is dropped; all arms share one
network but for the norm, where the published pairs differ in shortcuts, max-pool and
norms (ResNet, VGG).

`fashion_mnist` and `tiny` run anywhere. The others want their datasets prepared by TFDS
and an accelerator; nobody has run them with this code yet.
"""

import argparse
import dataclasses
import statistics
import time
from pathlib import Path

from tabulate import tabulate
from training.table1 import PRESETS

from kljax.federated import evaluation
from kljax.studies import run_folder
from kljax.studies.training import train

PAPER_FACTOR = 1.0048  # printed x this = true: the last batch counts as full there


def run(name: str, out: Path, seeds: int, **changes) -> list[dict]:
    """Runs, goes on with, or reads every seed; gives their accuracies."""
    found = []
    for seed in range(seeds):
        folder = out / name / str(seed)
        config = dataclasses.replace(PRESETS[name].config, seed=seed, **changes)
        run_folder.check_same(folder, config)
        summary = run_folder.read_summary(folder) if folder.exists() else None
        if summary is None:
            summary = train(config, folder, on_round=_said(name, seed)).summary
        found.append(summary["accuracy"])
    return found


def _said(name: str, seed: int):
    began = time.perf_counter()

    def said(row) -> None:
        if row["test_accuracy"] is not None:
            print(
                f"{name} seed {seed} {row['arm']} round {row['round']}: loss "
                f"{row['loss']:.3f}, test {row['test_accuracy']:.3f}, "
                f"{time.perf_counter() - began:.0f} s",
                flush=True,
            )

    return said


def table(name: str, found: list[dict]) -> str:
    """Lays out test x arm: mean over seeds and deviation between them, in %."""
    arms = list(found[0])

    def cell(test: str, arm: str) -> str:
        means = [100 * one[arm][test]["mean"] for one in found if test in one[arm]]
        if not means:
            return "-"
        spread = f" ± {statistics.stdev(means):.1f}" if len(means) > 1 else ""
        return f"{statistics.mean(means):.1f}{spread}"

    lines = [
        [f"`{test}`", *(cell(test, arm) for arm in arms), case.words]
        for test, case in evaluation.TESTS.items()
        if any(test in one[arm] for one in found for arm in arms)
    ]
    paper = {"none": PRESETS[name].fedavg, "keylock": PRESETS[name].fedkl}
    if any(value is not None for value in paper.values()):
        printed = [f"{paper[arm]}" if paper.get(arm) else "-" for arm in arms]
        true = [
            f"{PAPER_FACTOR * paper[arm]:.1f}" if paper.get(arm) else "-"
            for arm in arms
        ]
        lines.append(["paper, as printed", *printed, PRESETS[name].column])
        lines.append(["paper, true", *true, f"printed x {PAPER_FACTOR}"])
    header = ["test", *arms, "gates"]
    return tabulate(lines, header, tablefmt="github", disable_numparse=True)


def main(arguments: list[str] | None = None) -> None:
    """Runs a preset and prints its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument("--out", type=Path, default=Path("runs/accuracy"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--data-dir", default=None)
    for name, kind in (("rate", float), ("rounds", int)):
        parser.add_argument(f"--{name}", type=kind, help="instead of the preset's")
    parser.add_argument("--drops", type=int, nargs="*", help="instead of the preset's")
    parser.add_argument("--arms", nargs="+", help="instead of the preset's")
    parser.add_argument("--table", type=Path, default=None)
    options = parser.parse_args(arguments)
    preset = PRESETS[options.preset]
    given = {
        "data_dir": options.data_dir,
        "learning_rate": options.rate,
        "rounds": options.rounds,
        "drops": None if options.drops is None else tuple(options.drops),
        "arms": None if options.arms is None else tuple(options.arms),
    }
    changes = {name: value for name, value in given.items() if value is not None}
    found = run(options.preset, options.out, options.seeds, **changes)
    config = dataclasses.replace(preset.config, **changes)
    text = (
        f"{preset.words} {config.clients} clients, {config.rounds} rounds of batch "
        f"{config.batch} at rate {config.learning_rate} (x {config.drop_factor} from "
        f"rounds {config.drops} on). {options.seeds} seeds: mean ± deviation between "
        "seeds, in %.\n\n"
    )
    text += table(options.preset, found) + "\n"
    print(text)
    if options.table is not None:
        options.table.write_text(text)


if __name__ == "__main__":
    main()
