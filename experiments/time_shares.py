"""Where the time of one evaluation goes: operations of the compiled program, by kind.

    XLA_FLAGS=--xla_cpu_multi_thread_eigen=false \\
        python experiments/time_shares.py [--only NAME ...] [--chunk 1] [--repeats 5]

The flag keeps operations on one thread: what is handed on to others is not timed.

NAME is an entry of `inversion_speed.WORK`, as in speed.py. Shares are of the time that
the runtime's threads spend inside operations, all threads together, on one device:
matrix products; moving (pads, slices, joins and copies, of which patches are made and
taken apart, and the arithmetic that the compiler fused into them); sums over axes; and
other arithmetic.
"""

import argparse
import collections
import re
import tempfile
from pathlib import Path

import jax
from inversion_speed import WORK, Problem
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
    parser.add_argument("--only", nargs="+", choices=WORK, default=list(WORK))
    parser.add_argument("--chunk", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    rows = []
    for name in options.only:
        work = WORK[name]._replace(victims=options.chunk, repeats=options.repeats)
        seconds = measured(work, options.chunk)
        total = sum(seconds.values())
        rows.append([name, *(f"{100 * seconds[kind] / total:.0f}%" for kind in KINDS)])
    print(tabulate(rows, ["", *KINDS], tablefmt="github", disable_numparse=True))


def measured(work, chunk):
    """Times the operations of a program: seconds by kind."""
    problem = Problem(work)
    evaluate = jax.vmap(jax.value_and_grad(problem.objective(), argnums=4))
    given = (
        problem.params,
        problem.stats,
        problem.observe(),
        problem.labels,
        problem.starts,
    )
    given = jax.device_put(jax.tree.map(lambda x: x[:chunk], given))
    run = jax.jit(evaluate).lower(*given).compile()
    products = with_products(run.as_text())
    jax.block_until_ready(run(*given))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(work.repeats):
                jax.block_until_ready(run(*given))
        (file,) = Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(file))
        seconds = collections.Counter()
        for line in (line for plane in data.planes for line in plane.lines):
            if line.name.startswith("tf_XLA"):
                for event in line.events:
                    kind = kind_of(event.name, products)
                    seconds[kind] += event.duration_ns * 1e-9
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
