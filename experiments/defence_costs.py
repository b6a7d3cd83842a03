"""What a defence costs its client: seconds of a step, and bytes of what it sends.

    python experiments/defence_costs.py DATASET.toml OUT.json [--rounds 40] [--batch 16]
        [--only NAME ...]

A step is one gradient of a batch and its release, compiled, on the device that JAX has,
against the same step without a defence. Both run in turns, `--rounds` times each, and
each time a few steps; the ratio is the median over rounds, of seconds with over seconds
without, with quartiles. Seconds are of processor time on a CPU, all threads together,
which others at work on the machine disturb little, and of the clock elsewhere. Defences
are those of the catalogue, or of ``--only``, at each strength. What is in OUT already
is kept.

Bytes are those of the dense gradient in float32, and of what is sent by a code that
knows nothing of the defence (`coded_bytes`).
"""

import argparse
import tomllib
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import jax
import numpy as np

from kljax.core.files import read_json, write_json
from kljax.core.types import Public
from kljax.defences.arms import Arm, parse_training_arm
from kljax.defences.catalogue import KINDS, write_strengths
from kljax.federated import clients
from kljax.studies.builder.run_setup import RunSetup, build_run_setup
from kljax.studies.config import TrainConfig

FLOAT = 4  # bytes
STEPS = 5  # in a row
ON_GRID = 0.01  # in steps: as near to a grid as the rounding of float32 leaves it
MOST_LEVELS = 2**16
UNDEFENDED = "none"


def main():
    """Measures what is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=KINDS)
    options = parser.parse_args()
    source = tomllib.loads(options.dataset.read_text(encoding="utf-8"))
    config = TrainConfig(**source["both"], arms=(UNDEFENDED,), batch=options.batch)
    setup = build_run_setup(config)
    found = read_json(options.out, dict[str, Any]) or {}
    plain = make_step(setup, read_arm(setup, UNDEFENDED))
    for name in options.only or KINDS:
        for combination in write_strengths(name):
            if combination not in found:
                arm = read_arm(setup, combination)
                found[combination] = measure_arm(setup, arm, plain, options.rounds)
                write_json(options.out, found)
                print(combination, found[combination], flush=True)


def read_arm(setup: RunSetup, combination: str) -> Arm:
    """Reads a defence on the network of a training."""
    sites = setup.task.sites._replace(batch=setup.config.batch)
    return parse_training_arm(combination, sites, {})


def make_step(setup: RunSetup, arm: Arm):
    """Compiles one step of a client of an arm.

    Returns:
      ``() -> (what is sent, which of it can be read, what else the client computes)``.
    """
    task, batch = setup.task, setup.config.batch
    model, rng = task.models[arm.norm], jax.random.key(setup.config.seed)
    params, stats = jax.jit(model.init)(rng)
    public, private = jax.jit(arm.defence.init)(rng, params)
    inputs, labels = task.dataset.fetch(np.arange(batch))
    encode = task.dataset.target_spec.encode

    @jax.jit
    def step(rng, public, stats, private, inputs, targets, options):
        defence = arm.make(options)
        run = clients.one_step(model, task.loss, defence, train=True)
        update = run(rng, public, stats, private, inputs, targets)
        return update.sent, update.visible, (update.stats, update.lock_grads)

    options = tuple(np.float32(value) for value in arm.options)
    given = Public(params, public), stats, private, inputs, encode(labels), options
    return lambda: jax.block_until_ready(step(rng, *given))


def measure_arm(setup: RunSetup, arm: Arm, plain, rounds: int) -> dict[str, Any]:
    """Measures an arm; ``refused`` says why it has no step that could be."""
    try:
        step = make_step(setup, arm)
        step()
    except ValueError as error:
        return {"refused": str(error)}
    return measure(plain, step, rounds)


def measure(plain, step, rounds: int) -> dict[str, float]:
    """Measures a step beside the undefended one, in turns.

    Returns:
      ``seconds``: the median; ``times``: the median ratio, and its quartiles
      ``times_low`` and ``times_high``; ``dense`` and ``coded`` bytes; ``hidden``: the
      share of entries that a server cannot read.
    """
    sent, visible, _ = step()
    plain()  # both are compiled, and have run
    both = np.array([(seconds_of(plain), seconds_of(step)) for _ in range(rounds)])
    low, middle, high = np.quantile(both[:, 1] / both[:, 0], (0.25, 0.5, 0.75))
    tensors = [np.asarray(x, np.float32) for x in jax.tree.leaves(sent)]
    seen = jax.tree.leaves(visible)
    entries = sum(x.size for x in tensors)
    return {
        "seconds": float(np.median(both[:, 1])),
        "times": float(middle),
        "times_low": float(low),
        "times_high": float(high),
        "dense": FLOAT * entries,
        "coded": sum(map(coded_bytes, tensors)),
        "hidden": float(1 - sum(np.sum(x) for x in seen) / entries) if seen else 0.0,
    }


def seconds_of(step) -> float:
    """Times one step, the mean of `STEPS`."""
    clock = process_time if jax.default_backend() == "cpu" else perf_counter
    began = clock()
    for _ in range(STEPS):
        step()
    return (clock() - began) / STEPS


def coded_bytes(x: np.ndarray) -> int:
    """Counts the bytes of a tensor in the shortest of three plain codes.

    - every entry in float32, or in two bytes where all are numbers of float16;
    - index and value of every entry that is not 0, four bytes each;
    - bits of the level of every entry on an even grid, and the grid's step and zero.

    What a code knows of the defence, such as how many bits were meant, it does not use.
    """
    values, size = np.unique(x), x.size
    codes = [FLOAT * size, 2 * FLOAT * int(np.count_nonzero(x))]
    with np.errstate(over="ignore"):
        if np.array_equal(values, values.astype(np.float16).astype(values.dtype)):
            codes.append(FLOAT // 2 * size)
    levels = grid_levels(values)
    if levels is not None:
        codes.append(-(-size * max(1, int(levels - 1).bit_length()) // 8) + 2 * FLOAT)
    return min(codes)


def grid_levels(values: np.ndarray) -> int | None:
    """Counts the levels of the coarsest even grid that has all of these values.

    Args:
      values: ascending, each once.

    Returns:
      None where there is no grid of at most `MOST_LEVELS`.
    """
    if len(values) == 1:
        return 1
    places = values.astype(np.float64) - float(values[0])
    step = np.diff(places).min()
    for _ in range(3):  # the least gap is rounded too coarsely for the far end
        step = places[-1] / np.round(np.diff(places) / step).sum()
    levels = places / step
    even = np.abs(levels - np.round(levels)).max() <= ON_GRID
    count = round(float(levels[-1])) + 1
    return count if even and count <= MOST_LEVELS else None


if __name__ == "__main__":
    main()
