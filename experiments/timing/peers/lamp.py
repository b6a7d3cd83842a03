"""Peers of LAMP's proposals: the same orders of the same sentences, in PyTorch.

with LampPeer(python) as peer:                  # a Python that has torch 2.13.0
    peer.load(arrays)                           # see LampPeer.load
    peer.candidates(Setting("func", chunk=20)).per_second
"""

from typing import NamedTuple

from .processes import Peer, elapsed
from .processes import fastest as fastest_of

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


class LampPeer(Peer):
    """Owns the worker processes."""

    def __init__(self, python, gpu=False):
        super().__init__(python, "timing.workers.lamp", 2, gpu=gpu)
        self.victims = self.orders = 0

    def load(self, arrays):
        """Sends N victims to the workers, which compute the observed gradients.

        arrays: embeddings of the true sentences and of the guesses [N, T, d], labels
        [N], orders [N, P, T], and weights [N, ...] by kljax's names.
        """
        self.victims, self.orders = arrays["orders"].shape[:2]
        self.send(arrays)

    def candidates(self, setting):
        """Times all orders of all victims."""
        fields = setting._asdict()
        processes = fields.pop("processes")
        answers = self.ask_shares("candidates", self.victims, processes, **fields)
        values = [value for a in answers for value in a["values"]]
        return Round(len(values) / elapsed(*answers), values)


def fastest(peer, name):
    """Finds the best setting of a peer."""
    return fastest_of(
        settings(name, peer.orders), lambda s: 1 / peer.candidates(s).per_second
    )
