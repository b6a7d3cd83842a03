"""Peers of LAMP's proposals: the same orders of the same sentences, in PyTorch.

with LampPeer(python) as peer:                  # a Python that has torch 2.13.0
    peer.load(arrays)                           # see LampPeer.load
    peer.candidates(Setting("func", chunk=20)).per_second

python experiments/lamp_peer.py                 # the worker
"""

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from workers import Workers, serve

PEERS = ("torch-eager", "torch-func")


class Setting(NamedTuple):
    """How a peer runs."""

    form: str  # eager, or func
    chunk: int = 1  # orders at once; always 1 for eager
    threads: int = 1  # of each process
    processes: int = 1


class Round(NamedTuple):
    """One timed round."""

    per_second: float
    values: list[float]  # of the distance, of every order


def settings(name, orders):
    """Lists what is worth trying on two cores; a name may end with -2-processes."""
    form = name.removesuffix("-2-processes").removeprefix("torch-")
    processes = 2 if name.endswith("-2-processes") else 1
    chunks = (1,) if form == "eager" else sorted({min(n, orders) for n in (20, 200)})
    threads = (1, 2) if processes == 1 else (1,)
    return [Setting(form, n, t, processes) for n in chunks for t in threads]


class LampPeer:
    """Owns the worker processes; use it in a `with`."""

    def __init__(self, python, gpu=False):
        command = python, Path(__file__).resolve()
        self._workers = Workers(command, 2, gpu=gpu)
        self.victims = self.orders = 0

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._workers.close()

    def load(self, arrays):
        """Sends N victims to the workers, which compute the observed gradients.

        arrays: embeddings of the true sentences and of the guesses [N, T, d], labels
        [N], orders [N, P, T], and weights [N, ...] by kljax's names.
        """
        path = self._workers.folder / "victims.npz"
        np.savez(path, **arrays)
        self.victims, self.orders = arrays["orders"].shape[:2]
        self._workers.ask([{"command": "load", "path": str(path)}] * 2)

    def candidates(self, setting):
        """Times all orders of all victims."""
        share = self.victims // setting.processes
        fields = setting._asdict()
        fields.pop("processes")
        answers = self._workers.ask(
            [
                {"command": "candidates", **fields}
                | {"first": part * share, "last": (part + 1) * share}
                for part in range(setting.processes)
            ]
        )
        # perf_counter is one clock for all processes of a Linux machine.
        seconds = max(a["stop"] for a in answers) - min(a["start"] for a in answers)
        values = [value for a in answers for value in a["values"]]
        return Round(len(values) / seconds, values)


def fastest(peer, name):
    """Finds the best setting of a peer, by one round each after one to warm up."""
    speeds = {}
    for setting in settings(name, peer.orders):
        peer.candidates(setting)
        speeds[setting] = peer.candidates(setting).per_second
    return max(speeds, key=speeds.get)


def work():
    """Answers requests, inside a worker."""
    from peers.sentences import Sentences

    loaded = []

    def load(**fields):
        loaded[:] = [Sentences(**fields)]
        return {}

    def candidates(**fields):
        return loaded[0].candidates(**fields)

    serve({"load": load, "candidates": candidates})


if __name__ == "__main__":
    sys.exit(work())
