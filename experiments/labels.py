"""Measures how many labels each rule recovers, from gradients and from updates.

    kljax train --model lenet --data fashion_mnist --arms none --examples 15000 \\
        --test-examples 2000 --rounds 20 --batch 16 --learning-rate 0.1 \\
        --keep-rounds 0 20 --out runs/lenet
    kljax train --model resnet20 --data fashion_mnist --arms none --examples 6000 \\
        --test-examples 500 --rounds 4 --batch 32 --learning-rate 0.05 \\
        --keep-rounds 0 4 --out runs/resnet20
    python experiments/labels.py --run runs/lenet > experiments/labels.md
    python experiments/labels.py --run runs/resnet20 --victims 8 --samples 100 \\
        --batches 1 8 64 >> experiments/labels.md

What: batches of 1 to 64 examples of client 0 of each run, one step's gradient, on
networks that are drawn afresh for each victim and on the run's at its end; and updates
of several local steps, at the run's start and end, the client's optimiser started
anew. No defence: the classifier sits above every lock. Nothing is optimised, so a rule
sees the same view as in an attack and says its labels at once.

A cell that is finished lies in --out and is not run again; with --read nothing is run,
and what is missing is printed as such.
"""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from kljax import metrics
from kljax.attacks import Reconstruction
from kljax.attacks.labels import RULES
from kljax.attacks.labels.catalogue import OF_ONE_EXAMPLE
from kljax.attacks.presets import PRESETS
from kljax.attacks.presets.catalogue import of_user
from kljax.parallel import use_all_cores
from kljax.studies import run_folder
from kljax.studies.builder import from_run
from kljax.studies.config import LeakConfig
from kljax.studies.leakage import leak
from kljax.studies.sweeps import make_cell

BATCHES = (1, 2, 4, 8, 16, 32, 64)
# Local steps, how often each example is used, examples in a step.
UPDATES = ((4, 1, 8), (8, 2, 8), (20, 5, 4))
FLOORS = ("uniform guess", "even guess")
GUESSES = 200  # of each floor, averaged


def main():
    """Runs what is missing, and prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", nargs="+", required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/labels"))
    parser.add_argument("--victims", type=int, default=32)
    parser.add_argument("--samples", type=int, default=500, help="of counts' noise")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--read", action="store_true")
    options = parser.parse_args()
    use_all_cores()
    PRESETS[f"labels of {options.samples}"] = of_user(reader(options.samples))
    print(preamble(options))
    for folder in options.run:
        for title, cells in cells_of(folder, options):
            print(f"\n## {title}\n")
            lines = {name: finished(options, config) for name, config in cells}
            print("\n".join(table(lines)), flush=True)


def reader(samples):
    """Makes the attack that guesses no image and reads labels by every rule."""

    def build(setting, optimiser=None, *, steps, restarts):
        del optimiser, steps, restarts
        examples = setting.threat.knowledge.examples

        def attack(rng, view):
            del rng
            found = {}
            for name, rule in RULES.items():
                if name in OF_ONE_EXAMPLE and examples > 1:
                    continue
                more = {"samples": samples} if name.startswith("counts") else {}
                found[name] = rule(setting, view, **more)
            return Reconstruction(
                inputs=jnp.zeros((examples, *setting.task.image_shape)),
                labels=jnp.zeros(examples, jnp.int32),
                loss=jnp.zeros(()),
                finite=jnp.array(True),
                info=found,
            )

        return attack

    return build


def cells_of(folder, options):
    """Lists (title, [(name of the line, configuration)]) of one run."""
    run = run_folder.read_config(Path(folder))
    attack = {"attack": f"labels of {options.samples}", "victims": options.victims}
    ran = {"from_run": str(folder), "arms": ("none",), **attack}
    drawn = {
        "model": run.model,
        "data": run.data,
        "data_dir": run.data_dir,
        "image_size": run.image_size,
        "split": run.train_split,
        "arms": ("none",),
        **attack,
    }
    states = [
        ("untrained", {**drawn, "init": 0.0}),
        (f"after {run.rounds} rounds", {**ran, "round": run.rounds}),
    ]
    if run.model == "lenet":
        states.insert(1, ("untrained, weights U(-.5, .5)", {**drawn, "init": 0.5}))
    for words, fields in states:
        yield (
            f"{run.model}, {words}: gradient of one step",
            [(f"{n}", LeakConfig(**fields, examples=n)) for n in options.batches],
        )
    for number, words in ((0, "untrained"), (run.rounds, f"after {run.rounds} rounds")):
        lines = []
        for steps, epochs, batch in UPDATES:
            config = from_run.settle(
                LeakConfig(
                    **ran,
                    round=number,
                    upload="update",
                    client_optimiser="fresh",
                    local_steps=steps,
                    local_epochs=epochs,
                    batch=batch,
                )
            )
            name = f"{config.examples}, {steps} steps of {batch}"
            lines.append((name, config))
        yield f"{run.model}, {words}: update", lines


def finished(options, config):
    """Reads a cell's numbers, or runs it: rule -> share of labels, per victim."""
    # Where a run lies is no part of what was measured, but it names the run.
    cell = make_cell({}, dataclasses.replace(config, steps=1))
    path = options.out / f"{cell.id}.json"
    if options.read and not path.is_file():
        return None
    if not path.is_file():
        where = config.from_run or config.model
        print(f"{where}: {config.upload} of {config.examples}", file=sys.stderr)
        result = leak(cell.config)
        (arm,) = result.arms
        truths = result.victims.labels
        found = {
            name: [
                metrics.multiset_accuracy(guess, truth)
                for guess, truth in zip(np.asarray(labels), truths, strict=True)
            ]
            for name, labels in arm.attacked.reconstruction.info.items()
        }
        classes = result.dataset.num_classes
        for name in FLOORS:
            found[name] = [floor(name, truth, classes) for truth in truths]
        content = {"groups": result.victims.groups.tolist(), "found": found}
        options.out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return json.loads(path.read_text()) | {"examples": config.examples}


def floor(name, truth, classes):
    """Averages the share that a guess without any gradient gets right."""
    generator, size = np.random.default_rng(0), len(truth)
    shares = []
    for _ in range(GUESSES):
        if name == "uniform guess":
            guess = generator.integers(0, classes, size)
        else:  # as many of each class, as far as that goes
            guess = generator.permutation(classes)[np.arange(size) % classes]
        shares.append(metrics.multiset_accuracy(guess, truth))
    return float(np.mean(shares))


def table(lines):
    """Lays cells out as a table: a line each, a column per rule and floor."""
    names = [*RULES, *FLOORS]
    yield f"| examples | {' | '.join(names)} |"
    yield "|---" * (len(names) + 1) + "|"
    for line, content in lines.items():
        shown = [cell_text(content, name) for name in names]
        if content is None:
            shown = ["not run", *(len(names) - 1) * [""]]
        yield f"| {line} | {' | '.join(shown)} |"


def cell_text(content, name):
    """Writes a mean share in percent, with its interval."""
    if content is None or name not in content["found"]:
        return "-"
    values = np.array(content["found"][name])
    if name in FLOORS:
        return f"{100 * values.mean():.0f}"
    # One label is right or not. If all labels of all victims are, so many victims with
    # every label right are a lower bound of the share.
    rate = content["examples"] == 1 or bool((values == 1).all())
    found = metrics.interval(values, content["groups"], rate=rate)
    if not np.isfinite(found.low):
        return f"{100 * found.estimate:.0f} [?]"
    low, high = 100 * found.low, 100 * found.high
    return f"{100 * found.estimate:.0f} [{low:.0f}-{high:.0f}]"


def preamble(options):
    """Writes what the tables are."""
    return f"""\
# Labels recovered by rule: {", ".join(Path(run).name for run in options.run)}

Share of the labels that are right, in percent, in whatever order they were found, with
95 % intervals over {options.victims} victims. Floors without any gradient: a *uniform
guess* draws each label, an *even guess* takes as many of each class as it can.
`counts` and `counts_bias` estimate on {options.samples} inputs of noise (the paper: \
3,000). Victims
of a trained network share it, so their intervals say nothing about other trainings.

    {chr(10).join(commands()).strip()}"""


def commands():
    """Takes the commands out of the docstring."""
    return [line for line in __doc__.splitlines() if line.startswith("    ")]


if __name__ == "__main__":
    main()
