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
import os
import statistics
import time
from pathlib import Path

import jax

# One host device per core, before JAX wakes up.
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    jax.config.update("jax_num_cpu_devices", os.cpu_count())

from tabulate import tabulate

from kljax.federated import evaluation
from kljax.studies import run_folder
from kljax.studies.config import TrainConfig
from kljax.studies.training import train

PAPER_FACTOR = 1.0048  # printed x this = true: the last batch counts as full there


@dataclasses.dataclass(frozen=True)
class Preset:
    """One column of the paper's Table 1.

    Attributes:
      config: the training; its seed is replaced.
      fedavg: accuracy in % that the paper prints without the lock, None if it has none.
      fedkl: the same with it.
      words: where the configuration departs from the paper's, and why.
      column: whose numbers those are.
    """

    config: TrainConfig
    fedavg: float | None
    fedkl: float | None
    words: str
    column: str = "Table 1"


# FedKL, config.json: 3 clients, one local epoch of batch 64, SGD with Nesterov momentum
# .9 and weight decay 5e-4, 200 rounds, rate .01 x .2 at 60, 120, 160, unweighted mean.
PAPER = TrainConfig(
    rounds=200, drops=(60, 120, 160), weighting="uniform", evaluate_every=5
)
CIFAR = dataclasses.replace(PAPER, augment="crop_flip")


def cifar(model: str, classes: int, fedavg: float, fedkl: float) -> Preset:
    """Makes a CIFAR column; networks of ImageNet's kind see 224 x 224."""
    large = model in ("resnet18", "resnet34", "vgg16")
    config = dataclasses.replace(
        CIFAR,
        model=model,
        data=f"cifar{classes}",
        normalise=f"cifar{classes}",
        image_size=224 if large else 32,
    )
    return Preset(config, fedavg, fedkl, "The paper's hyper-parameters.")


# Sigmoid LeNets stay at chance for thousands of small steps: at the paper's rate and
# batch this budget would end before they leave it, in every arm. Batch and a first
# rate, .15, were chosen by the training loss of six rounds on seed 99. At .15 the lock
# arm then broke down on seed 0, a result in itself (experiments/accuracy.md has both);
# .05 was the next one tried, and chosen for the lock arm's sake.
FASHION = dataclasses.replace(
    PAPER,
    data="fashion_mnist",
    examples=15_000,
    test_examples=5_000,
    batch=16,
    rounds=60,
    drops=(40, 52),
    learning_rate=0.05,
    evaluate_every=3,
)

PRESETS: dict[str, Preset] = {
    "mnist": Preset(
        dataclasses.replace(PAPER, data="mnist"),
        98.14,
        97.45,
        "The paper's hyper-parameters.",
    ),
    "cifar10-resnet20": cifar("resnet20", 10, 91.20, 88.45),
    "cifar10-resnet32": cifar("resnet32", 10, 91.37, 89.29),
    "cifar10-resnet18": cifar("resnet18", 10, 89.50, 91.66),
    "cifar10-resnet34": cifar("resnet34", 10, 89.27, 93.27),
    "cifar10-vgg16": cifar("vgg16", 10, 88.13, 93.54),
    "cifar100-resnet20": cifar("resnet20", 100, 58.58, 61.97),
    "cifar100-resnet32": cifar("resnet32", 100, 61.91, 64.17),
    "cifar100-resnet18": cifar("resnet18", 100, 68.59, 74.19),
    "cifar100-resnet34": cifar("resnet34", 100, 68.30, 76.61),
    "cifar100-vgg16": cifar("vgg16", 100, 61.91, 73.06),
    "fashion_mnist": Preset(
        FASHION,
        98.14,
        97.45,
        "Fashion-MNIST instead of MNIST, and what two cores can do: at most 15,000 "
        "training and 5,000 test examples.",
        "Table 1, MNIST, not Fashion-MNIST",
    ),
    "tiny": Preset(
        TrainConfig(
            model="dense",
            arms=("none", "keylock"),
            image_size=8,
            rounds=6,
            batch=16,
            learning_rate=0.1,
            private_key_size=16,
            public_examples=10,
        ),
        None,
        None,
        "Digits at 8 x 8 on one dense layer: seconds.",
    ),
}


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
