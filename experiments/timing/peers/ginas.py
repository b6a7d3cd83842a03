"""Peers of the search of GI-NAS: the same networks, with the same weights, in PyTorch.

with GinasPeer(python) as peer:                  # a Python that has torch 2.13.0
    peer.load(arrays)                            # see workers.ginas.Networks
    peer.candidates(Setting("func", chunk=8))    # Round

Two processes of one thread count as a peer too, each with half of the networks.
"""

from typing import NamedTuple

from .processes import Peer, elapsed
from .processes import fastest as fastest_of

PEERS = ("torch-eager", "torch-func")
CHUNKS = (4, 20)  # networks at once, of func
CORES = ({"threads": 1}, {"threads": 2}, {"processes": 2})


class Setting(NamedTuple):
    """How a peer runs."""

    form: str  # eager, or func
    chunk: int = 1
    threads: int = 1
    processes: int = 1


class Round(NamedTuple):
    """One timed round."""

    per_second: float
    values: list[float]  # of the distance, of every network


def settings(name):
    """Lists what is worth trying on two cores."""
    form = name.removeprefix("torch-")
    chunks = (1,) if form == "eager" else CHUNKS
    return [Setting(form, chunk, **cores) for chunk in chunks for cores in CORES]


class GinasPeer(Peer):
    """Owns the worker processes."""

    def __init__(self, python, gpu=False):
        processes = max(cores.get("processes", 1) for cores in CORES)
        super().__init__(python, "timing.workers.ginas", processes, gpu=gpu)
        self.count = None  # of networks

    def load(self, arrays):
        """Sends the networks to the workers."""
        self.count = len(arrays["architecture/skips"])
        self.send(arrays)

    def candidates(self, setting):
        """Judges all networks once."""
        fields = setting._asdict()
        answers = self.ask_shares(
            "judge", self.count, fields.pop("processes"), **fields
        )
        values = [value for answer in answers for value in answer["values"]]
        return Round(self.count / elapsed(*answers), values)


def fastest(peer, name):
    """Finds the best setting of a peer."""
    return fastest_of(settings(name), lambda s: 1 / peer.candidates(s).per_second)
