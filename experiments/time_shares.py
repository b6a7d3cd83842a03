"""Where the time of one evaluation goes: operations of the compiled program, by kind.

    XLA_FLAGS=--xla_cpu_multi_thread_eigen=false \\
        python experiments/time_shares.py [--only NAME ...] [--chunk 1] [--repeats 50]

The flag keeps operations on one thread: what is handed on to others is not timed.

NAME is an entry of `inversion_speed.RACES`, as in speed.py; of `grnn-lenet` it is a
whole step, with the optimiser's. Shares are of the time that the runtime's threads
spend inside operations, all threads together, on one device, each operation at its
median: matrix products; moving (pads, slices, joins and copies, of which patches are
made and taken apart, and the arithmetic that the compiler fused into them); sums over
axes; and other arithmetic. Results: end of "Deeper networks" in experiments/speed.md.
"""

import argparse
import collections
import re
import statistics
import tempfile
from pathlib import Path

import jax
from inversion_speed import GRNN, RACES, WORK, Generators, Problem
from tabulate import tabulate

# Parts of the names that the CPU backend gives to operations without a product; the
# first kind counts.
KINDS = {
    "products": ("dot",),
    "moving": ("pad", "slice", "concatenate", "copy", "transpose"),
    "sums": ("ynn", "reduce"),
    "other arithmetic": ("",),
}
COMPUTATION = re.compile(r"^%([\w.-]+) \(.*?^}", re.MULTILINE | re.DOTALL)
CALL = re.compile(r"%([\w.-]+) = .*fusion\(.*calls=%([\w.-]+)")
OPERATION = re.compile(r"[a-z_-]+(\.\d+)?")
# What holds other operations, and is counted by them.
OUTER = ("while", "call", "conditional")


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=RACES, default=list(RACES))
    parser.add_argument("--chunk", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=50)
    options = parser.parse_args()
    if jax.default_backend() != "cpu":
        parser.error("the CPU backend's trace is read here: set JAX_PLATFORMS=cpu")
    rows = []
    for name in options.only:
        evaluate, given = program(name, options.chunk)
        seconds = measured(evaluate, given, options.repeats)
        total = sum(seconds.values())
        rows.append([name, *(f"{100 * seconds[kind] / total:.0f}%" for kind in KINDS)])
    print(tabulate(rows, ["", *KINDS], tablefmt="github", disable_numparse=True))


def program(name, chunk, convolution="auto"):
    """Gives what is timed, of one victim, and its arguments of `chunk` victims."""
    work = WORK.get(name, GRNN)._replace(victims=chunk)
    if name not in WORK:
        grnn = Generators(work, convolution)
        free, *known = grnn.given
        return grnn.step, (free, jax.vmap(grnn.optimiser.init)(free), *known)
    problem = Problem(work, convolution)
    observed = problem.observe()
    given = problem.params, problem.stats, observed, problem.labels, problem.starts
    return problem.evaluation(), given


def measured(evaluate, given, repeats):
    """Times the operations of a program: seconds by kind."""
    evaluate, given = jax.vmap(evaluate), jax.device_put(given)
    run = jax.jit(evaluate).lower(*given).compile()
    products = with_products(run.as_text())
    jax.block_until_ready(run(*given))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(repeats):
                jax.block_until_ready(run(*given))
        (file,) = Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(file))
        durations = collections.defaultdict(list)
        for line in (line for plane in data.planes for line in plane.lines):
            if line.name.startswith("tf_XLA"):
                for event in line.events:
                    durations[event.name].append(event.duration_ns * 1e-9)
    seconds = collections.Counter()
    for name, values in durations.items():
        # Medians: beside other work a thread is taken off its core now and then, and
        # one such wait is longer than all the rest of a small program.
        seconds[kind_of(name, products)] += len(values) * statistics.median(values)
    del seconds[None]
    return seconds


def with_products(program):
    """Lists the fusions of a compiled program, its text, that hold a product."""
    bodies = {found[1]: found[0] for found in COMPUTATION.finditer(program)}
    calls = CALL.findall(program)
    return {name for name, body in calls if " dot(" in bodies.get(body, "")}


def kind_of(name, products):
    """Classifies an event by its name; None for what is no operation of its own."""
    if not OPERATION.fullmatch(name) or name.startswith(OUTER):
        return None
    if name in products:
        return "products"
    return next(kind for kind, parts in KINDS.items() if any(p in name for p in parts))


if __name__ == "__main__":
    main()
