"""Peers of Learning to Invert's training: the same steps, in PyTorch.

with InverterPeer(python) as peer:              # a Python that has torch 2.13.0
    peer.load(hashed, rate, arrays)             # see InverterPeer.load
    peer.train(Setting("func"))                 # seconds, errors
"""

from typing import NamedTuple

from .processes import Peer, elapsed
from .processes import fastest as fastest_of

PEERS = ("torch-eager", "torch-func")


class Setting(NamedTuple):
    """How a peer runs."""

    form: str  # eager, or func
    convolution: str  # of workers.lenet.CONVOLUTIONS
    threads: int = 1


def settings(name):
    """Lists what is worth trying on two cores."""
    form = name.removeprefix("torch-")
    kinds = ("onednn", "native") if form == "eager" else ("onednn", "unfold")
    return [Setting(form, kind, n) for kind in kinds for n in (1, 2)]


class InverterPeer(Peer):
    """Owns the worker process."""

    def __init__(self, python, gpu=False):
        super().__init__(python, "timing.workers.inverters", gpu=gpu)

    def load(self, hashed, rate, arrays):
        """Sends all that is drawn to the worker.

        arrays: images [steps, m, C, H, W] and the same as truths [steps, m, n] in
        kljax's order, labels [steps, m]; order and signs [d] of the hashing; LeNet's
        weights in PyTorch's layouts after ``weights/``, kernels and biases of the
        inverter after ``layers/NUMBER/``.
        """
        self.send(arrays, hashed=hashed, rate=rate)

    def train(self, setting):
        """Makes all steps from the start; gives seconds and the error of each."""
        answer = self.ask_one("train", **setting._asdict())
        return elapsed(answer), answer["errors"]


def fastest(peer, name):
    """Finds the best setting of a peer."""
    return fastest_of(settings(name), lambda setting: peer.train(setting)[0])
