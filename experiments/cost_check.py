"""The cost model beside measurements: device-seconds predicted, and taken.

    XLA_FLAGS=--xla_cpu_multi_thread_eigen=false python experiments/cost_check.py \\
        --json FILE [--only NAME ...] [--device FILE] [--chunk N ...] [--rounds 5]

Names are entries of speed.py. Measured is one call of the compiled program of a chunk,
on one device with everything on it already: processor time on a CPU (what else the
machine does is left out, but for its use of memory and caches), the clock elsewhere.
On a CPU the flag keeps a program on one core. Beside the prediction stand its two
roofs: what all products take by their arithmetic, each at the peak of its width, and
what all operations take by the bytes that they move. The device is calibrated afresh,
unless a file of `kljax.studies.devices` is named. Results: experiments/scale.md.
"""

import argparse
import dataclasses
import json
import statistics
import time
from pathlib import Path

import jax
import numpy as np
from tabulate import tabulate
from timing.device import on_gpu
from timing.entries.federated import WORK as ROUNDS
from timing.programs import NAMES, victims_program

from kljax.parallel import chunk_program
from kljax.studies.cost import chunk_operations, predict
from kljax.studies.devices import calibrate, read_device

SECONDS = 0.5  # that a round lasts at least
CHUNKS = {"dlg-lenet-eval": 8, "fedavg-inversion": 8, "ig-convnet64": 1}


def measured(fn, given, rounds):
    """Times calls of a program: seconds each, the median of the rounds."""
    run, given = jax.jit(fn).lower(*given).compile(), jax.device_put(given)
    clock = time.perf_counter if on_gpu() else time.process_time
    jax.block_until_ready(run(*given))
    values = []
    for _ in range(rounds):
        calls, start, until = 0, clock(), time.perf_counter() + SECONDS
        while time.perf_counter() < until:
            jax.block_until_ready(run(*given))
            calls += 1
        values.append((clock() - start) / calls)
    return statistics.median(values)


def check(name, chunk, device, rounds):
    """Predicts and measures the program of one chunk."""
    one, given, layout = victims_program(name, chunk)
    operations = chunk_operations(one, layout, given, chunk=chunk)
    cost = predict(operations, device)
    taken = measured(chunk_program(one, layout), given, rounds)
    return {
        "name": name,
        "chunk": chunk,
        "flops": cost.flops,
        "bytes": cost.nbytes,
        "launches": cost.launches,
        "products_s": sum(
            o.times * device.multiplying(o.flops, o.width) for o in operations
        ),
        "moving_s": sum(o.times * device.moving(o.nbytes) for o in operations),
        "predicted_s": cost.seconds,
        "measured_s": taken,
        "ratio": cost.seconds / taken,
    }


def main():
    """Prints and writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--device", type=Path)
    parser.add_argument("--chunk", type=int, nargs="+", help="default: the fastest")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="chunks of one victim")
    options = parser.parse_args()
    if options.tiny:
        options.chunk = [1]
    rows = []
    with jax.default_matmul_precision("highest"):
        device = read_device(options.device) if options.device else calibrate()
        print(device, flush=True)
        for name in options.only:
            own = 64 if on_gpu() else CHUNKS.get(name, 2)
            for chunk in options.chunk or [1 if name in ROUNDS else own]:
                rows.append(check(name, chunk, device, options.rounds))
                print(json.dumps(rows[-1]), flush=True)
                made = {"device": dataclasses.asdict(device), "entries": rows}
                options.json.write_text(json.dumps(made, indent=2) + "\n")
    lines = [
        [
            f"`{row['name']}`, {row['chunk']}",
            f"{row['flops'] / 1e6:.0f}",
            f"{row['bytes'] / 1e6:.1f}",
            row["launches"],
            f"{row['products_s'] * 1e3:.2f}",
            f"{row['moving_s'] * 1e3:.2f}",
            f"{row['predicted_s'] * 1e3:.2f}",
            f"{row['measured_s'] * 1e3:.2f}",
            f"{row['ratio']:.2f}",
        ]
        for row in rows
    ]
    header = ["entry, chunk", "MFLOP", "MB", "launches", "products ms", "moving ms"]
    header += ["predicted ms", "measured ms", "ratio"]
    print(tabulate(lines, header, tablefmt="github", disable_numparse=True))
    errors = [abs(np.log(row["ratio"])) for row in rows]
    print(f"typical error: {np.expm1(np.median(errors)):.0%}")


if __name__ == "__main__":
    main()
