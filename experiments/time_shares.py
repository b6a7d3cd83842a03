"""Where the time of one evaluation goes: operations of the compiled program, by kind.

    XLA_FLAGS=--xla_cpu_multi_thread_eigen=false \\
        python experiments/time_shares.py [--only NAME ...] [--chunk 1] [--repeats 50]

The flag keeps operations on one thread: what is handed on to others is not timed.

NAME is an entry of `timing.programs.ATTACKS`, as in speed.py; of `grnn-lenet` it is a
whole step, with the optimiser's. Shares are of the time that the runtime's threads
spend inside operations, all threads together, on one device, each operation at its
median: matrix products; moving (pads, slices, joins and copies, of which patches are
made and taken apart, and the arithmetic that the compiler fused into them); sums over
axes; and other arithmetic. Results: end of experiments/speed/inversions.md.
"""

import argparse

import jax
from tabulate import tabulate
from timing.operations import KINDS, trace_operations
from timing.programs import ATTACKS, attack_program


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=ATTACKS, default=list(ATTACKS))
    parser.add_argument("--chunk", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=50)
    options = parser.parse_args()
    if jax.default_backend() != "cpu":
        parser.error("the CPU backend's trace is read here: set JAX_PLATFORMS=cpu")
    rows = []
    for name in options.only:
        evaluate, given = attack_program(name, options.chunk)
        seconds = measured(evaluate, given, options.repeats)
        total = sum(seconds.values())
        rows.append([name, *(f"{100 * seconds[kind] / total:.0f}%" for kind in KINDS)])
    print(tabulate(rows, ["", *KINDS], tablefmt="github", disable_numparse=True))


def measured(evaluate, given, repeats):
    """Times the operations of a program: seconds by kind."""
    evaluate, given = jax.vmap(evaluate), jax.device_put(given)
    run = jax.jit(evaluate).lower(*given).compile()
    jax.block_until_ready(run(*given))
    _, seconds = trace_operations(run, given, repeats)
    return seconds


if __name__ == "__main__":
    main()
