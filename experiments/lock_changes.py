"""What a change of the lock costs in accuracy.

    python experiments/lock_changes.py [--out runs/lock_changes] [--seeds 1]
        [--rounds 30] [--data-dir DIR] [--only CHANGE ...]

Results: experiments/lock_changes.md. Trains LeNet on Fashion-MNIST as
`experiments/accuracy.py fashion_mnist` does, but for half as many rounds, under each
change of the lock that experiments/study/04-lock-changes.toml attacks, and under one
that matters over rounds: private keys drawn anew in each. Prints the accuracy of
clients with their own gates, the matched control with plaintext gates, and what an
outsider has who re-fits gates on public examples. Called again, it goes on where it
stopped.
"""

import argparse
import dataclasses
import statistics
from pathlib import Path

from tabulate import tabulate
from training.table1 import FASHION

from kljax.studies import run_folder
from kljax.studies.training import train

CHANGES = {
    "paper": {},
    "sigmoid gates": {"lock_activation": "sigmoid"},
    "signed gates": {"lock_activation": "signed"},
    "second layer": {"sites": ("norm2",)},
    "third layer": {"sites": ("norm3",)},
    "all layers, chained": {"sites": ("all",), "chained": True},
    "fresh private keys": {"fresh_private_keys": True},
    # On every gradient that a client makes, as in part 04.
    "noise .001": {
        "arms": (
            "plaintext-gates+gaussian-noise=0.001",
            "keylock+gaussian-noise=0.001",
        )
    },
    # Once on what is uploaded: another defence, and a weaker one.
    "noise .001 on updates": {
        "arms": (
            "plaintext-gates+gaussian-noise@update=0.001",
            "keylock+gaussian-noise@update=0.001",
        )
    },
}
ARMS = ("plaintext-gates", "keylock")


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/lock_changes"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--data-dir")
    parser.add_argument("--only", nargs="+", choices=CHANGES, default=list(CHANGES))
    options = parser.parse_args()
    lines, tests = [], {}
    for name in options.only:
        found = [
            accuracy(
                name,
                options.out / name.replace(" ", "_") / str(seed),
                seed=seed,
                rounds=options.rounds,
                # The learning rate falls where it does there, in proportion.
                drops=tuple(
                    n * options.rounds // FASHION.rounds for n in FASHION.drops
                ),
                data_dir=options.data_dir,
            )
            for seed in range(options.seeds)
        ]
        tests |= dict.fromkeys(test for _, locked in found for test in locked)
        lines.append((name, found))
    header = ["lock", "plaintext gates", *(f"`{test}`" for test in tests)]
    body = [
        [name, shown([control for control, _ in found], "own")]
        + [shown([locked for _, locked in found], test) for test in tests]
        for name, found in lines
    ]
    print(tabulate(body, header, tablefmt="github", disable_numparse=True))


def accuracy(name, folder, **changes):
    """Trains under a change, goes on with it, or reads it.

    Returns:
      {test: ...} of the control and of the lock.
    """
    options = {"arms": ARMS} | changes | CHANGES[name]
    config = dataclasses.replace(FASHION, **options)
    summary = None
    if folder.exists():
        run_folder.check_same(folder, config)
        summary = run_folder.read_summary(folder)
    if summary is None:
        summary = train(config, folder).summary
    return [summary["accuracy"][arm] for arm in config.arms]


def shown(found, test):
    """Writes mean and deviation over seeds, in percent."""
    means = [100 * one[test]["mean"] for one in found if test in one]
    if not means:
        return "-"
    spread = f" ± {statistics.stdev(means):.1f}" if len(means) > 1 else ""
    return f"{statistics.mean(means):.1f}{spread}"


if __name__ == "__main__":
    main()
