"""Peers of image gradients of an attack's objective: the same victims, in PyTorch.

with InversionPeer(python) as peer:             # a Python that has torch 2.13.0
    peer.load("resnet20", arrays, rate, weight)   # see InversionPeer.load
    peer.evaluations(Setting("func", chunk=16), repeats=1).per_second
"""

from typing import NamedTuple

from .processes import Peer, elapsed

PEERS = ("torch-eager", "torch-func")


class Setting(NamedTuple):
    """How a peer runs."""

    form: str  # eager, or func
    chunk: int = 1  # victims at once; always 1 for eager
    kernels: str = "onednn"  # or "native": PyTorch's own convolutions; on CPUs
    threads: int = 1  # of each process
    processes: int = 1


class Round(NamedTuple):
    """One timed round."""

    per_second: float
    values: list[float]  # of the objective, of every victim at its start


def settings(name, victims, gpu=False):
    """Lists what is worth trying; a name may end with -2-processes.

    On two cores, or on a GPU, where there is nothing to choose but large chunks.
    """
    form = name.removesuffix("-2-processes").removeprefix("torch-")
    processes = 2 if name.endswith("-2-processes") else 1
    share = victims // processes
    chunks = sorted({16, 64, 256, share}) if gpu else (2, 4, 8, 16)
    return [
        Setting(form, chunk, kernels, threads, processes)
        for kernels in (("onednn",) if gpu else ("onednn", "native"))
        for chunk in ((1,) if form == "eager" else chunks)
        if victims % (chunk * processes) == 0
        for threads in ((1, 2) if processes == 1 and not gpu else (1,))
    ]


class InversionPeer(Peer):
    """Owns the worker processes."""

    def __init__(self, python, processes=2, gpu=False):
        super().__init__(python, "timing.workers.inversions", processes, gpu=gpu)
        self.victims, self.gpu = 0, gpu

    def load(self, network, arrays, rate, weight):
        """Sends N victims to the workers, which compute the observed uploads.

        arrays: images and starts [N, T, B, H, W, C] in [0, 1], labels [N, T, B], and
        weights [N, ...] by kljax's names; T local steps of size `rate`, one for a
        gradient. weight: of the total variation.
        """
        self.victims = len(arrays["images"])
        self.send(arrays, network=network, rate=rate, weight=weight)

    def load_generators(self, arrays, weight):
        """Sends N victims of GRNN to the workers.

        arrays: images [N, B, H, W, C] in [0, 1], labels [N, B], noise [N, B, inputs],
        weights of LeNet [N, ...] by kljax's names, and those of the generators after
        ``generator/``. weight: of the total variation.
        """
        self.victims = len(arrays["images"])
        self.send(arrays, "load_generators", weight=weight)

    def evaluations(self, setting, repeats):
        """Times `repeats` values and gradients of every victim, from its start on."""
        fields = {"setting": setting._asdict(), "repeats": repeats}
        answers = self.ask_shares(
            "evaluations", self.victims, setting.processes, **fields
        )
        count = sum(a["evaluations"] for a in answers)
        values = [v for a in answers for v in a["values"]]
        return Round(count / elapsed(*answers), values)


def fastest(peer, name):
    """Finds the best setting of a peer, by one round each after a round to warm up."""
    speeds = {}
    for setting in settings(name, peer.victims, peer.gpu):
        first = peer.evaluations(setting, 1).per_second
        # Hopeless ones get no second round.
        if first > 0.3 * max(speeds.values(), default=0):
            speeds[setting] = max(first, peer.evaluations(setting, 1).per_second)
    return max(speeds, key=speeds.get)
