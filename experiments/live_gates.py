"""Counts the gates of trained locks that are not dead.

    python experiments/live_gates.py RUN [RUN ...] [--round R] [--arm keylock]

RUN is a folder of ``kljax train``; R a round whose state was kept, by default the end.
A scale or shift is live where it is not exactly zero, as a ReLU leaves it.
"""

import argparse
from pathlib import Path

import jax

from kljax.studies import run_folder
from kljax.studies.builder import from_run, run_client
from kljax.studies.config import LeakConfig


def main():
    """Prints a line per run: live scales and shifts of each client."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--round", type=int)
    parser.add_argument("--arm", default="keylock")
    options = parser.parse_args()
    for run in options.runs:
        print(run, *counts(run, options.arm, options.round), sep="  ")


def counts(run, arm, number):
    """Counts ``scales+shifts of channels`` for every client of a run."""
    config = run_folder.read_config(Path(run))
    number = config.rounds if number is None else number
    found = []
    for client in range(config.clients):
        study = LeakConfig(
            from_run=run, round=number, client=client, arms=(f"{arm}/known",)
        )
        seen = run_client.capture(from_run.settle(study))
        state = run_client.capture_arm(seen, arm)
        defence = seen.setup.arms[arm].defence
        gates = defence.gates(state.public.defence, state.client.private)
        leaves = jax.tree.leaves(gates)
        scales = sum(int((gate.scale != 0).sum()) for gate in gates.values())
        shifts = sum(int((gate.shift != 0).sum()) for gate in gates.values())
        channels = sum(leaf.size for leaf in leaves) // 2
        found.append(f"client {client}: {scales}+{shifts} of {channels}")
    return found


if __name__ == "__main__":
    main()
