"""The peer of trigger inversion: the same pairs of classes, in eager PyTorch.

with TriggerPeer(python) as peer:             # a Python that has torch 2.13.0
    peer.load("dense", arrays)                # see TriggerPeer.load
    peer.search(Setting("loop"), steps=30)    # seconds, sizes

python experiments/trigger_peer.py            # the worker
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from workers import Workers, serve

PEERS = ("torch-eager", "torch-batched")


class Setting(NamedTuple):
    """How a peer runs."""

    form: str  # loop: pair by pair; batched: all side by side
    threads: int = 1


def settings(name):
    """Lists what is worth trying on two cores."""
    form = "batched" if name == "torch-batched" else "loop"
    return [Setting(form, threads) for threads in (1, 2)]


class TriggerPeer:
    """Owns the worker process; use it in a `with`."""

    def __init__(self, python, gpu=False):
        self._workers = Workers((python, Path(__file__).resolve()), 1, gpu=gpu)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._workers.close()

    def load(self, network, arrays):
        """Sends the pairs to the worker.

        arrays: images [pairs, m, H, W, C] of each pair's source, targets [pairs], and
        where masks [pairs, H, W, 1] and patterns [pairs, H, W, C] start; the network's
        weights by kljax's names, after ``weights/``.
        """
        path = self._workers.folder / "pairs.npz"
        np.savez(path, **arrays)
        self._workers.ask([{"command": "load", "network": network, "path": str(path)}])

    def search(self, setting, steps):
        """Inverts every pair once; gives seconds and the sizes of their masks."""
        (answer,) = self._workers.ask(
            [{"command": "search", "steps": steps} | setting._asdict()]
        )
        return answer["stop"] - answer["start"], answer["sizes"]


def fastest(peer, name, steps):
    """Finds the best setting of a peer, by one round each after one to warm up."""
    spent = {}
    for setting in settings(name):
        peer.search(setting, 2)
        spent[setting] = peer.search(setting, steps)[0]
    return min(spent, key=spent.get)


def work():
    """Answers requests, inside the worker."""
    from peers.triggers import Search

    loaded = []

    def load(**fields):
        loaded[:] = [Search(**fields)]
        return {}

    def search(**fields):
        return loaded[0].search(**fields)

    serve({"load": load, "search": search})


if __name__ == "__main__":
    work()
