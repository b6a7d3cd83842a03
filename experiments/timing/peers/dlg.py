"""PyTorch peers for the speed table: the same victims, starts and attack, in torch.

Every timed call is ONE round, so that a driver can take turns between rounds of ours
and of the peer:

    with TorchPeer(python) as peer:                   # a Python that has torch 2.13.0
        peer.load(weights, images, labels, starts)    # see TorchPeer.load
        setting = Setting("func", "unfold", chunk=16, processes=2)
        peer.warm(setting)                            # compiles, fills caches
        peer.evaluations(setting, repeats=20).per_second
        peer.attack(setting, iterations=1000).images  # [M, 3, 32, 32]

`TorchPeer.forms` lists the settings worth trying per form; `fastest` picks the best on
the machine at hand. A peer's figure is the best of its list, never a single setting.
Two processes of one thread count as a peer too: victims are independent, and nothing
stops a user of torch from running two scripts.

On a busy machine two threads can fall tenfold, as one waits for the other at every
operation; two processes do not.
"""

from typing import NamedTuple

import numpy as np

from .processes import Peer, elapsed


class Setting(NamedTuple):
    """How a peer runs: `form` eager or func, `conv` of workers.lenet.CONVOLUTIONS.

    On a GPU "onednn" is cuDNN, and `compiled` uses CUDA graphs.
    """

    form: str
    conv: str
    chunk: int = 1  # victims at once; always 1 for eager
    compiled: bool = False  # torch.compile, func only
    threads: int = 1  # of each process
    processes: int = 1


class Round(NamedTuple):
    """One timed round."""

    evaluations: int  # summed over the victims
    seconds: float  # from the first process's start to the last one's stop
    images: np.ndarray | None = None  # [M, 3, 32, 32] best iterates of an attack
    losses: np.ndarray | None = None  # [M] their objectives

    @property
    def per_second(self):
        """Evaluations per second."""
        return self.evaluations / self.seconds


CORES = ({"threads": 1}, {"threads": 2}, {"processes": 2})
# What is worth trying on a CPU of two cores.
FORMS = {
    "eager": [
        Setting("eager", conv, **c) for conv in ("onednn", "native") for c in CORES
    ],
    "func": [
        Setting("func", conv, chunk, **c)
        for conv in ("onednn", "unfold")
        for chunk in (8, 16, 32, 64)
        for c in CORES
    ],
    # compiling takes a minute per chunk size and thread count, so fewer of them
    "compiled": [
        Setting("func", "separable", chunk, compiled=True, **c)
        for chunk in (8, 16)
        for c in CORES
    ],
}
# And on a GPU, where large chunks win.
SHARED = ({"processes": 1}, {"processes": 2})
GPU_FORMS = {
    "eager": [Setting("eager", "onednn", **c) for c in SHARED],
    "func": [
        Setting("func", conv, chunk, **c)
        for conv in ("onednn", "unfold")
        for chunk in (64, 256)
        for c in SHARED
    ],
    "compiled": [Setting("func", "separable", 256, compiled=True)],
}


class TorchPeer(Peer):
    """Owns worker processes; use it in a `with`, or call `close`."""

    def __init__(self, python, processes=2, gpu=False):
        # compile in the worker itself: no helper processes that outlive the call
        env = {"TORCHINDUCTOR_COMPILE_THREADS": "1"}
        super().__init__(python, "timing.workers.dlg", processes, env, gpu)
        self.forms = GPU_FORMS if gpu else FORMS
        self.victims = 0

    def load(self, weights, images, labels, starts):
        """Sends M victims to the workers, which compute the observed gradients.

        weights: NAME -> [M, ...] float32, as `lenet_in_torch` gives them; images and
        starts [M, 3, 32, 32] float32, images in [0, 1]; labels [M] int.
        """
        named = {f"weights/{n}": np.float32(w) for n, w in weights.items()}
        images, starts = np.float32(images), np.float32(starts)
        arrays = {"images": images, "labels": np.int32(labels), "starts": starts}
        self.victims = len(images)
        self.send(arrays | named)

    def warm(self, setting):
        """Compiles and runs one round per process, one process after the other."""
        for part in range(setting.processes):
            request = self._requests("evaluations", setting, repeats=1)[part]
            self._workers.ask([None] * part + [request])

    def evaluations(self, setting, repeats):
        """Times `repeats` evaluations of every victim at its start."""
        answers = self._workers.ask(
            self._requests("evaluations", setting, repeats=repeats)
        )
        return self._round(answers)

    def attack(self, setting, iterations, pairs=20):
        """Times one complete attack on every victim; returns what it found.

        Fixed-step L-BFGS from the starts, `iterations` evaluations each, best iterate
        by the objective.
        """
        requests = self._requests("attack", setting, iterations=iterations, pairs=pairs)
        for part, request in enumerate(requests):
            request["path"] = str(self._workers.folder / f"found{part}.npz")
        timed, found = self._round(self._workers.ask(requests)), []
        for request in requests:
            with np.load(request["path"]) as file:
                found.append((file["images"], file["losses"]))
        images, losses = (np.concatenate(part) for part in zip(*found, strict=True))
        return timed._replace(images=images, losses=losses)

    def _requests(self, command, setting, **fields):
        share, rest = divmod(self.victims, setting.processes)
        if rest or share % setting.chunk or not share:
            raise ValueError(
                f"{self.victims} victims do not fill {setting.processes} processes "
                f"with chunks of {setting.chunk}; load a multiple of "
                f"{setting.processes * setting.chunk}"
            )
        if setting.processes > len(self._workers):
            raise ValueError(
                f"setting wants {setting.processes} processes, "
                f"TorchPeer was made with {len(self._workers)}"
            )
        common = {"command": command, "setting": setting._asdict(), **fields}
        return [
            {**common, "first": part * share, "last": (part + 1) * share}
            for part in range(setting.processes)
        ]

    @staticmethod
    def _round(answers):
        return Round(sum(a["evaluations"] for a in answers), elapsed(*answers))


def fastest(peer, settings, repeats=4, rounds=2):
    """Returns (best setting, evaluations/s of every setting), best round of each.

    Settings whose chunks the loaded victims do not fill are left out.
    """
    speeds = {}
    for setting in settings:
        if peer.victims % (setting.chunk * setting.processes):
            continue
        peer.warm(setting)
        times = [peer.evaluations(setting, repeats) for _ in range(rounds)]
        speeds[setting] = max(t.per_second for t in times)
    return max(speeds, key=speeds.get), speeds
