"""What do GradInversion's batch statistics and its group consistency add?

    python experiments/gradinversion.py [--arms ARM ...] [--matching 10 ...]
        [--victims 16] [--examples 4] [--restarts 4] [--steps 2000] [--seed 0]

What: the preset `gradinversion` on LeNet with a batch norm after each convolution, in
train mode, photographs at 16x16, labels given; the preset as it is, without its
statistics, without its group, without both, and with a group of a hundred times the
weight. All arms have the same victims, weights, starts and evaluations. Scores are
those of `kljax.studies.scoring`, means over victims with intervals that draw
photographs (of each victim's first example); floors are made without any gradient.
Loss: the squared distance of gradients, without its weight and without priors, median.

The weights are the preset's but for that of the distance, which is for longer gradients
there; it is chosen with ``--arms full --matching 1 10 100 --seed 1000 --victims 8``, on
other victims, by the lowest loss. Results: experiments/gradinversion.md.
"""

import argparse
import functools
import itertools
import time

import numpy as np
from tabulate import tabulate

from kljax import LeakConfig, leak, metrics, score_rows
from kljax.attacks.presets import PRESETS
from kljax.parallel import use_all_cores
from kljax.studies.leak_summary import summarise

GROUP = 0.01  # the preset's
ARMS = {
    "full": {},
    "without statistics": {"statistics": 0.0},
    "without group": {"group": 0.0},
    "without both": {"statistics": 0.0, "group": 0.0},
    "group x 100": {"group": 100 * GROUP},
}
SCORES = {"SSIM": "ssim", "SSIM affine oracle": "ssim_affine_oracle", "PSNR dB": "psnr"}


def main():
    """Prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--matching", type=float, nargs="+", default=[10.0])
    parser.add_argument("--victims", type=int, default=16)
    parser.add_argument("--examples", type=int, default=4)
    parser.add_argument("--restarts", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    use_all_cores()
    weights, results = {}, []
    for arm, matching in itertools.product(options.arms, options.matching):
        name = arm if len(options.matching) == 1 else f"{arm}, matching {matching:g}"
        weights[name] = matching
        results.append(attack(name, ARMS[arm] | {"matching": matching}, options))
    # As arms of one study, whose floors are the same.
    together = results[0]._replace(arms=[made for one in results for made in one.arms])
    rows = score_rows(together)
    print(scores(summarise(together, rows), rows, weights), flush=True)
    if len(weights) > 1:
        print("\n" + differences(rows, *weights))
    print(f"\n{time.process_time():.0f} processor seconds")


def attack(name, changes, options):
    """Attacks all victims by the preset with some of its options changed."""
    preset = PRESETS["gradinversion"]
    PRESETS[name] = preset._replace(build=functools.partial(preset.build, **changes))
    config = LeakConfig(
        data="photos",
        image_size=16,
        arms=("bn-control",),
        sites=("all",),
        attack=name,
        labels="given",
        victims=options.victims,
        examples=options.examples,
        restarts=options.restarts,
        steps=options.steps,
        seed=options.seed,
    )
    result = leak(config)
    (made,) = result.arms
    return result._replace(arms=[made._replace(arm=made.arm._replace(name=name))])


def scores(summary, rows, weights):
    """Lays out a line per arm and floor."""
    lines = [(name, arm) for name, arm in summary["arms"].items()]
    lines += [(f"floor: {name}", arm) for name, arm in summary["floors"].items()]
    table = []
    for name, line in lines:
        rate, *bounds = (line[f"success_{n}"] for n in ("rate", "low", "high"))
        recovered, loss = "-", "-"
        if name in weights:
            recovered = f"{line['recovered_rate']:.0%}"
            losses = [row["matching_loss"] for row in rows if row["arm"] == name]
            loss = f"{np.median(losses) / weights[name]:.1e}"
        table.append(
            [
                name,
                recovered,
                f"{rate:.0%} {bracketed(bounds, lambda x: f'{100 * x:.0f}')}",
                *(shown(column, line[column]) for column in SCORES.values()),
                loss,
            ]
        )
    head = ["arm", "recovered", "SSIM >= .6 [95 %]", *SCORES, "loss"]
    return tabulate(table, head, tablefmt="github", disable_numparse=True)


def differences(rows, first, *others):
    """Lays out by how much the first arm is above each other, victim by victim."""

    def of(arm, column):
        return np.array([row[column] for row in rows if row["arm"] == arm])

    groups, table = of(first, "group"), []
    for other in others:
        cells = []
        for column in SCORES.values():
            apart = of(first, column) - of(other, column)
            found = metrics.interval(apart, groups, rate=False)
            bounds = bracketed(found[1:3], functools.partial(shown, column))
            cells.append(f"{shown(column, found.estimate)} {bounds}")
        table.append([f"{first} - {other}", *cells])
    head = ["difference [95 %]", *SCORES]
    return tabulate(table, head, tablefmt="github", disable_numparse=True)


def bracketed(bounds, write):
    """Writes the bounds of an interval, which may be unknown."""
    return f"[{', '.join(map(write, bounds))}]" if np.isfinite(bounds[0]) else "[?]"


def shown(column, value):
    """Writes a score: decibels with one digit, others with three."""
    return f"{value:.1f}" if column == "psnr" else f"{value:.3f}"


if __name__ == "__main__":
    main()
