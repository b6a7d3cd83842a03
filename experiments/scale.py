"""What a million attacks and a round of 10,000 clients would take, and cost.

    python experiments/scale.py fit [--out experiments/speed/h200.json]
    python experiments/scale.py price --per-hour DOLLARS [--device FILE]

`fit` makes a device of the cost model (`kljax.studies.cost`) from two entries of
speed/gpu.json, LeNet's evaluations in chunks of 8 and of 512 on an H200, and predicts
the other entries. `price` predicts by that device, or by another, one that
`kljax leak --dry-run` left in the user's cache say, and multiplies by a price per
device and hour. Eight and 64 devices are taken to be 8 and 64 times as fast: victims
share nothing, clients one sum; that nobody waits is assumed and not measured.
Results: experiments/scale.md.
"""

import argparse
import dataclasses
import json
import math
from pathlib import Path

import jax
from tabulate import tabulate
from timing.entries.federated import WORK
from timing.programs import victims_program

from kljax.core import files
from kljax.models.convolution import choose_form
from kljax.parallel import Layout
from kljax.studies.builder.study import build_study
from kljax.studies.config import LeakConfig
from kljax.studies.cost import Device, chunk_operations, predict
from kljax.studies.devices import read_device
from kljax.studies.sweeps.estimate import predict_attack, settle_convolution

HERE = Path(__file__).parent
H200 = HERE / "speed" / "h200.json"
FITTED = {8: "sharded, chunk 8, matmul", 512: "sharded, chunk 512, matmul"}
CHUNKS = {"fl-resnet20-b10": 8, "fl-lenet-b10": 16, "fl-lenet-b32": 16}
DEVICES = (1, 8, 64)
ATTACKS, CLIENTS = 1_000_000, 10_000
STUDIES = {
    "DLG, LeNet": LeakConfig(model="lenet", attack="dlg", arms=("none",)),
    "DLG, LeNet with the lock": LeakConfig(
        model="lenet", attack="dlg", arms=("keylock/known",)
    ),
    "Inverting Gradients, ResNet-20": LeakConfig(
        model="resnet20", attack="inverting-gradients", arms=("none",)
    ),
}
STEPS = 1000  # evaluations of an attack
ROUNDS = ("fl-lenet-b10", "fl-cnn-b50", "fl-resnet20-b10")


def operations_of(name, chunk, backend="gpu"):
    """Counts the program of an entry as a GPU runs it: one batch of the chunk.

    Its convolutions are in the form that is fastest on the backend, wherever it is
    counted.
    """
    one, given, _ = victims_program(name, min(chunk, 2), choose_form(backend))
    return chunk_operations(one, Layout("vmap"), given, chunk=chunk)


def measured():
    """Reads speed/gpu.json: seconds of a chunk, by entry and chunk."""
    entries = json.loads((HERE / "speed" / "gpu.json").read_text())
    entries = {made["name"]: made for made in entries}
    rates = entries["convolution"]["peers"]
    found = {
        ("dlg-lenet-eval", 64): 64 / entries["convolution"]["ours"]["median"],
        ("dlg-lenet-eval", 256): 256 / rates["sharded, chunk 256, matmul"]["median"],
        ("grnn-lenet", 64): 64 / entries["grnn-lenet"]["ours"]["median"],
    }
    for chunk, label in FITTED.items():
        found["dlg-lenet-eval", chunk] = chunk / rates[label]["median"]
    for name, chunk in CHUNKS.items():
        examples = chunk * WORK[name].batch
        found[name, chunk] = examples / entries[name]["ours"]["median"]
    peak = entries["grnn-lenet"]["settings"]["matmul_peak_gflops"] * 1e9
    return found, peak


def fit(options):
    """Solves for bandwidth and launch; prints what they predict of all entries."""
    found, peak = measured()
    work = {
        chunk: predict(
            operations_of("dlg-lenet-eval", chunk),
            Device("", 1, 0, 1, 1, 0, 0, "", "gpu"),
        )
        for chunk in FITTED
    }
    few, many = FITTED
    # seconds = bytes / bandwidth + launches * launch, twice.
    (bytes_few, launches), (bytes_many, _) = (
        (work[chunk].nbytes, work[chunk].launches) for chunk in FITTED
    )
    slower = found["dlg-lenet-eval", many] - found["dlg-lenet-eval", few]
    bandwidth = (bytes_many - bytes_few) / slower
    launch = (found["dlg-lenet-eval", few] - bytes_few / bandwidth) / launches
    device = Device(
        name="NVIDIA H200",
        peak=peak,
        half_width=0,
        near=bandwidth,
        far=bandwidth,
        cache=0,
        launch=launch,
        source="fitted to LeNet in chunks of 8 and 512, speed/gpu.json",
        backend="gpu",
    )
    files.write_json(options.out, dataclasses.asdict(device))
    print(f"{device}\n")
    lines = []
    for (name, chunk), seconds in sorted(found.items()):
        guess = predict(operations_of(name, chunk), device).seconds
        fitted = name == "dlg-lenet-eval" and chunk in FITTED
        lines.append(
            [f"`{name}`, {chunk}", f"{guess * 1e3:.3g}", f"{seconds * 1e3:.3g}"]
            + [f"{guess / seconds:.2f}" + (" (fitted)" if fitted else "")]
        )
    show(lines, ["entry, chunk", "predicted ms", "measured ms", "ratio"])


def price(options):
    """Prints the table of prices."""
    device = read_device(options.device)
    layout = Layout("vmap", 64)
    lines = []
    for title, config in STUDIES.items():
        config = dataclasses.replace(config, victims=1, steps=STEPS)
        config = settle_convolution(config, device)
        (attack,) = build_study(config).attacks
        each = predict_attack(config, attack, layout, device).seconds
        lines.append(
            row(f"a million attacks: {title}", each, ATTACKS, options.per_hour)
        )
    for name in ROUNDS:
        work = WORK[name]
        operations = operations_of(name, 16, device.backend)
        step = predict(operations, device).seconds / 16
        title = f"a round of 10,000 clients: `{name}`, {work.steps} steps each"
        lines.append(row(title, work.steps * step, CLIENTS, options.per_hour))
    print(f"{device}; {options.per_hour:g} dollars per device and hour\n")
    header = ["what", "ms each", "device hours"]
    show(lines, [*header, *(f"on {count}" for count in DEVICES), "dollars"])


def row(title, each, count, per_hour):
    """Formats what so many of something take."""
    whole = each * count
    return [
        title,
        f"{each * 1e3:.3g}",
        f"{whole / 3600:.3g}",
        *(spelled(whole / devices) for devices in DEVICES),
        f"{whole / 3600 * per_hour:.2g}",
    ]


def spelled(seconds):
    """Writes a time in the unit that suits it."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.2g} s"


def show(lines, header):
    """Prints a table."""
    print(tabulate(lines, header, tablefmt="github", disable_numparse=True))


def positive(text):
    """Reads a number above 0."""
    number = float(text)
    if not (math.isfinite(number) and number > 0):
        raise ValueError
    return number


def main():
    """Does what the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("fit")
    command.add_argument("--out", type=Path, default=H200)
    command.set_defaults(run=fit)
    command = commands.add_parser("price")
    command.add_argument("--per-hour", type=positive, required=True)
    command.add_argument("--device", type=Path, default=H200)
    command.set_defaults(run=price)
    options = parser.parse_args()
    with jax.default_matmul_precision("highest"):
        options.run(options)


if __name__ == "__main__":
    main()
