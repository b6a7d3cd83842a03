"""Victims one after another against victims batched, over networks of every size.

    python experiments/layouts.py [--rounds 5] [--only NAME ...]

What `kljax leak` compiles of each network: a whole attack of some steps, 16 victims, by
`sharded` and by `sharded_loop` in turns, in chunks of 8 on each device. *forward* is
the arithmetic of the products of one forward pass of a victim's examples, in millions
of operations; *ratio* is `sharded_loop` over `sharded`, by evaluations/s, the median of
the rounds and their range; *compiling* are the seconds of each. What it printed is in
experiments/speed/forms.md; `kljax.parallel.fastest_layout` follows it.
"""

import argparse
import statistics

import jax
from tabulate import tabulate

from kljax import LeakConfig
from kljax.parallel import Layout, map_victims, use_all_cores
from kljax.studies.builder.study import build_study
from kljax.studies.cost import count_operations

VICTIMS = 16
WORKS = {
    "dense, 8x8": {"model": "dense", "image_size": 8, "steps": 200},
    "lenet, 16x16": {"image_size": 16, "steps": 100},
    "lenet, 32x32": {"steps": 50},
    "lenet, 32x32, b 2": {"steps": 25, "examples": 2},
    "lenet, 32x32, b 8": {"steps": 10, "examples": 8},
    "lenet, 32x32, 4 restarts": {"steps": 10, "restarts": 4},
    "resnet20, 16x16": {"model": "resnet20", "image_size": 16, "steps": 10},
    "resnet20, 32x32": {"model": "resnet20", "steps": 4},
    "resnet20, 32x32, inverting-gradients": {
        "model": "resnet20",
        "attack": "inverting-gradients",
        "steps": 4,
        "threat": ("victim_norm=eval", "attacker_norm=eval"),
    },
    "convnet64, 32x32": {"model": "convnet64", "steps": 2},
    "vit, 32x32": {"model": "vit", "steps": 4},
    "cnn6, 32x32": {"model": "cnn6", "steps": 10},
    "transformer": {
        "model": "transformer",
        "data": "text",
        "attack": "dlg",
        "steps": 50,
    },
}
KINDS = ("sharded", "sharded_loop")


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=WORKS, default=list(WORKS))
    options = parser.parse_args()
    use_all_cores()
    rows = []
    for name in options.only:
        rows.append(measure(name, options.rounds))
        print(rows[-1], flush=True)
    print(tabulate(rows, ("", "forward", "ratio", "range", "compiling"), "github"))


def measure(name, rounds):
    """Measures one work: a row."""
    fields = {"data": "digits", "attack": "matching", "arms": ("none",)} | WORKS[name]
    study = build_study(LeakConfig(victims=VICTIMS, **fields))
    (attack,) = study.attacks
    runs = {
        kind: map_victims(attack.attack_one, Layout(kind, 8), draws=attack.client.draws)
        for kind in KINDS
    }
    with jax.default_matmul_precision(study.config.precision):
        compiling = [f"{run(*attack.inputs)[1].compile_s:.1f}" for run in runs.values()]
        seconds = {kind: [] for kind in KINDS}
        for _ in range(rounds):
            for kind, run in runs.items():
                seconds[kind].append(run(*attack.inputs)[1].run_s)
    ratios = [a / b for a, b in zip(*seconds.values(), strict=True)]
    return (
        name,
        forward(study),
        f"{statistics.median(ratios):.2f}",
        f"{min(ratios):.2f}-{max(ratios):.2f}",
        ", ".join(compiling),
    )


def forward(study):
    """Counts the products of one forward pass, in millions of operations."""
    task, rng = study.attacks[0].setting.task, jax.random.key(0)
    params, stats = jax.eval_shape(task.model.init, rng)
    spec = study.task.dataset.input_spec
    inputs = jax.ShapeDtypeStruct((study.config.examples, *spec.shape), spec.dtype)

    def apply(params, stats, inputs):
        return task.model.apply(params, stats, inputs, train=True, rngs=rng)

    operations = count_operations(apply, params, stats, inputs)
    return round(sum(one.times * one.flops for one in operations) / 1e6, 1)


if __name__ == "__main__":
    main()
