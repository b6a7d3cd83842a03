"""The peer of trigger inversion: the same pairs of classes, in eager PyTorch.

with TriggerPeer(python) as peer:             # a Python that has torch 2.13.0
    peer.load("dense", arrays)                # see TriggerPeer.load
    peer.search(Setting("loop"), steps=30)    # seconds, sizes
"""

from typing import NamedTuple

from .processes import Peer, elapsed
from .processes import fastest as fastest_of

PEERS = ("torch-eager", "torch-batched")


class Setting(NamedTuple):
    """How a peer runs."""

    form: str  # loop: pair by pair; batched: all side by side
    threads: int = 1


def settings(name):
    """Lists what is worth trying on two cores."""
    form = "batched" if name == "torch-batched" else "loop"
    return [Setting(form, threads) for threads in (1, 2)]


class TriggerPeer(Peer):
    """Owns the worker process."""

    def __init__(self, python, gpu=False):
        super().__init__(python, "timing.workers.triggers", gpu=gpu)

    def load(self, network, arrays):
        """Sends the pairs to the worker.

        arrays: images [pairs, m, H, W, C] of each pair's source, targets [pairs], and
        where masks [pairs, H, W, 1] and patterns [pairs, H, W, C] start; the network's
        weights by kljax's names, after ``weights/``.
        """
        self.send(arrays, network=network)

    def search(self, setting, steps):
        """Inverts every pair once; gives seconds and the sizes of their masks."""
        answer = self.ask_one("search", steps=steps, **setting._asdict())
        return elapsed(answer), answer["sizes"]


def fastest(peer, name, steps):
    """Finds the best setting of a peer; two steps warm up."""
    return fastest_of(
        settings(name),
        lambda setting: peer.search(setting, steps)[0],
        warm_up=lambda setting: peer.search(setting, 2),
    )
