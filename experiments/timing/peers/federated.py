"""Peers of a federated round: the same clients, weights and batches, other libraries.

    with FederatedPeer("torch", python) as peer:    # a Python that has the library
        peer.load("lenet", rate, arrays)            # see FederatedPeer.load
        peer.round(Setting("torch-sequential", threads=2)).seconds

`FederatedPeer.settings` lists what is worth trying for each peer; `fastest` picks the
best on the machine at hand. Peers:
  torch-sequential              the plain way, see workers/federated_torch.py
  torch-sequential-2-processes  the same with the clients dealt to two processes; more
                                than users write, and the strongest use of two cores
  fedjax                        its jit backend, see workers/federated_fedjax.py
"""

import itertools
from typing import NamedTuple

import numpy as np

from .processes import Peer, elapsed


class Setting(NamedTuple):
    """How a peer runs; only `processes` matters to fedjax, and it is 1."""

    kernels: str = "onednn"  # or "native": PyTorch's own
    fused: bool = False  # torch.optim.SGD(fused=...)
    threads: int = 1  # of each process
    processes: int = 1


class Round(NamedTuple):
    """One timed round."""

    seconds: float  # from the first process's start to the last one's stop
    arrays: dict[str, np.ndarray] | None = None  # aggregated, by kljax's names


_TORCH = tuple(itertools.product(("onednn", "native"), (False, True)))
SETTINGS = {
    "torch-sequential": [Setting(*s, threads=t) for s in _TORCH for t in (1, 2)],
    "torch-sequential-2-processes": [Setting(*s, processes=2) for s in _TORCH],
    "fedjax": [Setting()],
}
# On a GPU there are no CPU kernels and threads to choose.
GPU_SETTINGS = {
    title: [s for s in settings if (s.kernels, s.threads) == ("onednn", 1)]
    for title, settings in SETTINGS.items()
}


class FederatedPeer(Peer):
    """Owns the worker processes of one library."""

    def __init__(self, library, python, processes=1, gpu=False):
        # Defaults of its own, not those of the driver's JAX; and no worker may take
        # most of a GPU's memory for itself.
        worker = f"timing.workers.federated_{library}"
        env = {"XLA_FLAGS": "", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        super().__init__(python, worker, processes, env, gpu)
        self.settings = GPU_SETTINGS if gpu else SETTINGS
        self.clients = 0

    def load(self, network, rate, arrays):
        """Sends the federation to the workers.

        network: of `entries.federated.NETWORKS`; rate: of the clients' plain SGD.
        arrays: images [M, H, W, C] float32, labels [M] int32, batches [N, T, B] int64
        (indices into them), weights [N] float32 of the clients in the mean, and the
        server's parameters and statistics by kljax's names ("conv1/kernel").
        """
        self.clients = len(arrays["batches"])
        self.send(arrays, network=network, rate=rate)

    def round(self, setting, steps=None, result=False):
        """Times one round from the weights loaded; gives the new ones if wanted.

        `steps` cuts every client's local training short.
        """
        bounds = np.linspace(0, self.clients, setting.processes + 1).astype(int)
        paths = [self._workers.folder / f"mean{n}.npz" for n in range(len(bounds) - 1)]
        answers = self._workers.ask(
            [
                {
                    "command": "round",
                    "setting": setting._asdict(),
                    "first": int(first),
                    "last": int(last),
                    "steps": steps,
                    "path": str(path) if result else None,
                }
                for first, last, path in zip(bounds, bounds[1:], paths, strict=False)
            ]
        )
        seconds = elapsed(*answers)
        if not result:
            return Round(seconds)
        total, means = sum(a["weight"] for a in answers), []
        for path, answer in zip(paths, answers, strict=True):
            with np.load(path) as file:
                share = answer["weight"] / total
                means.append({name: share * file[name] for name in file.files})
        return Round(seconds, {name: sum(m[name] for m in means) for name in means[0]})


def fastest(peer, settings, steps=None):
    """Returns the best setting and the seconds of the very first round.

    `steps` cuts the clients' local training short, where a round takes long.

    That round, which is not counted, is where a library compiles. A setting gets a
    second chance unless it is far behind: two threads can collapse on a busy machine.
    """
    first, times = peer.round(settings[0], steps).seconds, {}
    for setting in settings:
        seconds = peer.round(setting, steps).seconds
        if seconds < 2 * min(times.values(), default=seconds):
            seconds = min(seconds, peer.round(setting, steps).seconds)
        times[setting] = seconds
    return min(times, key=times.get), first
