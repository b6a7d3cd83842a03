"""Peers of Learning to Invert's training: the same steps, in PyTorch.

with InverterPeer(python) as peer:              # a Python that has torch 2.13.0
    peer.load(hashed, rate, arrays)             # see InverterPeer.load
    peer.train(Setting("func"))                 # seconds, errors

python experiments/inverter_peer.py             # the worker
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from workers import Workers, serve

PEERS = ("torch-eager", "torch-func")


class Setting(NamedTuple):
    """How a peer runs."""

    form: str  # eager, or func
    convolution: str  # of peers.lenet.CONVOLUTIONS
    threads: int = 1


def settings(name):
    """Lists what is worth trying on two cores."""
    form = name.removeprefix("torch-")
    kinds = ("onednn", "native") if form == "eager" else ("onednn", "unfold")
    return [Setting(form, kind, n) for kind in kinds for n in (1, 2)]


class InverterPeer:
    """Owns the worker process; use it in a `with`."""

    def __init__(self, python, gpu=False):
        self._workers = Workers((python, Path(__file__).resolve()), 1, gpu=gpu)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._workers.close()

    def load(self, hashed, rate, arrays):
        """Sends all that is drawn to the worker.

        arrays: images [steps, m, C, H, W] and the same as truths [steps, m, n] in
        kljax's order, labels [steps, m]; order and signs [d] of the hashing; LeNet's
        weights in PyTorch's layouts after ``weights/``, kernels and biases of the
        inverter after ``layers/NUMBER/``.
        """
        path = self._workers.folder / "training.npz"
        np.savez(path, **arrays)
        request = {"command": "load", "hashed": hashed, "rate": rate, "path": str(path)}
        self._workers.ask([request])

    def train(self, setting):
        """Makes all steps from the start; gives seconds and the error of each."""
        (answer,) = self._workers.ask([{"command": "train"} | setting._asdict()])
        return answer["stop"] - answer["start"], answer["errors"]


def fastest(peer, name):
    """Finds the best setting of a peer, by one round each after one to warm up."""
    spent = {}
    for setting in settings(name):
        peer.train(setting)
        spent[setting] = peer.train(setting)[0]
    return min(spent, key=spent.get)


def work():
    """Answers requests, inside the worker."""
    from peers.inverters import Training

    loaded = []

    def load(**fields):
        loaded[:] = [Training(**fields)]
        return {}

    def train(**fields):
        return loaded[0].train(**fields)

    serve({"load": load, "train": train})


if __name__ == "__main__":
    work()
