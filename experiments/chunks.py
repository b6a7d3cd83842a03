"""Where LeNet's time goes, from small chunks to large ones.

    python experiments/chunks.py --json FILE [--chunks 64 256 1024 4096] [--rounds 5]

Per chunk, one evaluation of DLG's objective and its image gradient (`dlg-lenet-eval`):

  call      the compiled program, everything on the device already: ms by the clock
  host      what `map_victims` does beside it: rows taken, copied there and back, ms
  a victim  call / chunk, us; where it no longer falls, launches are paid for
  GFLOP/s, GB/s   the compiler's own counts over the call; a loop's body counts once,
            and there is no loop here
  kernels   operations that ran on the device, from a trace of calls; and their busy
            time as a share of the call: what is left are gaps between them
  products, moving, sums   shares of the busy time, by the operations' names

and at the end the line through the calls, ms = a + b chunk: a is what a call costs
however small it is. Kernels inside a CUDA graph need
XLA_FLAGS=--xla_gpu_enable_command_buffer= to be seen one by one. The gradient of a
chunk is compared with that of `lax.conv`, victims one after another.
"""

import argparse
import functools
import json
import statistics
import time
from pathlib import Path

import jax
import numpy as np
from tabulate import tabulate
from timing.entries.dlg import Problem, evaluation
from timing.operations import KINDS, trace_operations

from kljax.parallel import Layout, chunk_program, map_victims

TRACED = 5  # calls
CHECKED = 4  # victims whose gradients are compared


def main():
    """Prints and writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--chunks", type=int, nargs="+", default=[64, 256, 1024, 4096])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rows = []
    with jax.default_matmul_precision("highest"):
        for chunk in options.chunks:
            try:
                rows.append(measure(chunk, options.rounds))
            except jax.errors.JaxRuntimeError as error:
                if not rows or "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                print(f"chunks of {chunk} and more do not fit into the memory")
                break
            print(json.dumps(rows[-1]), flush=True)
    fixed, each = 0.0, rows[0]["call_s"] / rows[0]["chunk"]
    if len(rows) > 1:
        sizes, calls = ([row[of] for row in rows] for of in ("chunk", "call_s"))
        each, fixed = np.polyfit(sizes, calls, 1)
    device = f"{jax.default_backend()}: {jax.devices()[0].device_kind}"
    made = {"name": "chunks", "device": device, "rows": rows}
    made |= {"fixed_s": fixed, "s_per_victim": each}
    options.json.write_text(json.dumps(made, indent=2) + "\n")
    print(tabulate([line(row) for row in rows], HEADER, tablefmt="github"))
    print(f"call = {fixed * 1e3:.3g} ms + {each * 1e6:.3g} us a victim; {device}")


HEADER = ["chunk", "call ms", "host ms", "us a victim", "GFLOP/s", "GB/s"]
HEADER += ["kernels", "busy", "products", "moving", "sums", "apart"]


def line(row):
    """Formats a row."""
    call, shares = row["call_s"], row["shares"]
    return [
        row["chunk"],
        f"{call * 1e3:.3g}",
        f"{row['host_s'] * 1e3:.3g}",
        f"{call / row['chunk'] * 1e6:.3g}",
        f"{row['flops'] / call / 1e9:.3g}",
        f"{row['bytes'] / call / 1e9:.3g}",
        row["kernels"],
        f"{row['busy_s'] / call:.0%}",
        *(f"{shares[kind]:.0%}" for kind in ("products", "moving", "sums")),
        f"{row['difference']:.0e}",
    ]


def measure(chunk, rounds):
    """Measures one chunk."""
    problem = Problem(chunk)
    given = problem.params, problem.targets, problem.observed, problem.starts
    layout = Layout("chunked", chunk)
    run = jax.jit(chunk_program(evaluation, layout)).lower(*given).compile()
    there = jax.device_put(given)
    (_, slopes), calls, whole = run(*there), [], []
    mapped = map_victims(evaluation, layout)
    mapped(*given)
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready(run(*there))
        calls.append(time.perf_counter() - start)
        whole.append(mapped(*given)[1].run_s)
    cost, call = run.cost_analysis(), statistics.median(calls)
    kernels, seconds = trace_operations(run, there, TRACED)
    busy = sum(seconds.values())
    return {
        "chunk": chunk,
        "call_s": call,
        "host_s": statistics.median(whole) - call,
        "flops": cost["flops"],
        "bytes": cost["bytes accessed"],
        "kernels": kernels,
        "busy_s": busy,
        "shares": {kind: seconds[kind] / busy if busy else 0.0 for kind in KINDS},
        "difference": difference(given, np.asarray(slopes)),
    }


def difference(given, slopes):
    """Compares some gradients with their slow form: |ours - slow| / |slow|."""
    some = jax.tree.map(lambda x: np.asarray(x[:CHECKED]), given)
    slow = functools.partial(evaluation, convolution="lax")
    (_, expected), _ = map_victims(slow, Layout("loop"))(*some)
    apart = slopes[: len(expected)] - expected
    return float(np.linalg.norm(apart) / np.linalg.norm(expected))


if __name__ == "__main__":
    main()
