"""Peers of the search of GI-NAS: the same networks, with the same weights, in PyTorch.

with GinasPeer(python) as peer:                  # a Python that has torch 2.13.0
    peer.load(arrays)                            # see workers.ginas.Networks
    peer.candidates(Setting("func", chunk=8))    # Round
"""

from typing import NamedTuple

from .processes import Peer, elapsed
from .processes import fastest as fastest_of

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


class GinasPeer(Peer):
    """Owns the worker process."""

    def __init__(self, python, gpu=False):
        super().__init__(python, "timing.workers.ginas", gpu=gpu)

    def load(self, arrays):
        """Sends the networks to the worker."""
        self.send(arrays)

    def candidates(self, setting):
        """Judges all networks once."""
        answer = self.ask_one("judge", **setting._asdict())
        return Round(len(answer["values"]) / elapsed(answer), answer["values"])


def fastest(peer, name):
    """Finds the best setting of a peer."""
    return fastest_of(settings(name), lambda s: 1 / peer.candidates(s).per_second)
