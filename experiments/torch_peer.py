"""PyTorch peers for the speed table: the same victims, starts and attack, in torch.

The driver talks to worker processes (`workers`).
This file needs only NumPy until it serves. Every timed call is ONE round, so that a
driver can take turns between rounds of ours and of the peer:

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

    python experiments/torch_peer.py bench            # a table, a few minutes
    python experiments/torch_peer.py serve            # the worker, JSON lines

Last obtained, evaluations/s, best of six rounds on two cores of an AMD EPYC (AVX2)
that others were using too, torch 2.13.0 (CPU), 64 victims: eager 578 in one process,
1,115 in two; torch.func 1,718 with two threads, 2,027 in two processes; compiled 2,975
and 3,293. In attacks 990, 1,704 and 2,636. On a busy machine two threads can fall
tenfold, as one waits for the other at every operation; two processes do not.
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from workers import Peer, elapsed, serve


class Setting(NamedTuple):
    """How a peer runs: `form` eager or func, `conv` of peers.lenet.CONVOLUTIONS.

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


# names and shapes of a victim, torch layout
PARAMETERS = {
    "conv1/weight": (12, 3, 5, 5),
    "conv1/bias": (12,),
    "conv2/weight": (12, 12, 5, 5),
    "conv2/bias": (12,),
    "conv3/weight": (12, 12, 5, 5),
    "conv3/bias": (12,),
    "fc/weight": (10, 768),
    "fc/bias": (10,),
}
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
        script = Path(__file__).resolve()
        # compile in the worker itself: no helper processes that outlive the call
        env = {"TORCHINDUCTOR_COMPILE_THREADS": "1"}
        super().__init__((python, script, "serve"), processes, env, gpu)
        self.forms = GPU_FORMS if gpu else FORMS
        self.victims = 0

    def load(self, weights, images, labels, starts):
        """Sends M victims to the workers, which compute the observed gradients.

        weights: NAME -> [M, ...] float32, names and shapes of PARAMETERS; images and
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


def draw_victims(count, seed):
    """Draws load()'s arguments: weights U(-.5, .5), images U(0, 1), starts near .5."""
    rng = np.random.default_rng(seed)
    weights = {n: rng.uniform(-0.5, 0.5, (count, *s)) for n, s in PARAMETERS.items()}
    images = rng.uniform(0, 1, (count, 3, 32, 32))
    labels = rng.integers(0, 10, count)
    return weights, images, labels, 0.5 + 0.1 * rng.standard_normal(images.shape)


def work():
    """Answers requests, inside a worker."""
    import torch
    from peers import rounds

    victims = []

    def load(path):
        victims[:] = [rounds.load(path)]
        return {}

    def timed(run):
        def command(setting, first, last, **fields):
            torch.set_num_threads(setting["threads"])
            part = rounds.part(victims[0], slice(first, last))
            return run(part, setting=setting, **fields)

        return command

    commands = {
        "evaluations": timed(rounds.evaluations),
        "attack": timed(rounds.attack),
    }
    serve({"load": load} | commands)


def bench():
    """Prints the speed of every setting and of one short attack per form."""
    with TorchPeer(sys.executable) as peer:
        peer.load(*draw_victims(64, seed=0))
        for form, settings in FORMS.items():
            best, speeds = fastest(peer, settings)
            for setting, speed in sorted(speeds.items(), key=lambda item: -item[1]):
                print(f"{speed:7.0f} evaluations/s  {setting}", flush=True)
            speed = peer.attack(best, iterations=50).per_second
            print(f"{speed:7.0f} in an attack of 50 iterations, {form}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("serve", "bench"))
    {"serve": work, "bench": bench}[parser.parse_args().command]()
