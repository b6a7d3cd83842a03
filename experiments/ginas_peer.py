"""Peers of the search of GI-NAS: the same networks, with the same weights, in PyTorch.

with GinasPeer(python) as peer:                  # a Python that has torch 2.13.0
    peer.load(arrays)                            # see peers.encoder_decoders.Networks
    peer.candidates(Setting("func", chunk=8))    # Round

python experiments/ginas_peer.py                 # the worker
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from workers import Workers, serve

PEERS = ("torch-eager", "torch-func")
CHUNKS = (4, 20)  # networks at once, of func


class Setting(NamedTuple):
    """How a peer runs."""

    form: str  # eager, or func
    chunk: int = 1
    threads: int = 1


class Round(NamedTuple):
    """One timed round."""

    per_second: float
    values: list[float]  # of the distance, of every network


def settings(name):
    """Lists what is worth trying on two cores."""
    form = name.removeprefix("torch-")
    chunks = (1,) if form == "eager" else CHUNKS
    return [Setting(form, chunk, n) for chunk in chunks for n in (1, 2)]


class GinasPeer:
    """Owns the worker process; use it in a `with`."""

    def __init__(self, python, gpu=False):
        self._workers = Workers((python, Path(__file__).resolve()), 1, gpu=gpu)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._workers.close()

    def load(self, arrays):
        """Sends the networks to the worker."""
        path = self._workers.folder / "networks.npz"
        np.savez(path, **arrays)
        self._workers.ask([{"command": "load", "path": str(path)}])

    def candidates(self, setting):
        """Judges all networks once."""
        request = {"command": "candidates"} | setting._asdict()
        (answer,) = self._workers.ask([request])
        seconds = answer["stop"] - answer["start"]
        return Round(len(answer["values"]) / seconds, answer["values"])


def fastest(peer, name):
    """Finds the best setting of a peer, by one round each after one to warm up."""
    speeds = {}
    for setting in settings(name):
        peer.candidates(setting)
        speeds[setting] = peer.candidates(setting).per_second
    return max(speeds, key=speeds.get)


def work():
    """Answers requests, inside the worker."""
    from peers.encoder_decoders import Networks

    loaded = []

    def load(path):
        loaded[:] = [Networks(path)]
        return {}

    def candidates(**fields):
        return loaded[0].judge(**fields)

    serve({"load": load, "candidates": candidates})


if __name__ == "__main__":
    work()
