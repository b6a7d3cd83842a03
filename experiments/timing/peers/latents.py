"""Peers of the latent attacks: the same candidates, the same steps, in PyTorch.

with LatentPeer(python) as peer:                 # a Python that has torch 2.13.0
    peer.load(arrays)                            # see LatentPeer.load
    peer.judge(Setting("func", "unfold", 50, 1))
"""

from typing import NamedTuple

import numpy as np

from .processes import Peer

PEERS = ("torch-eager", "torch-func")
# Ways to write a convolution, see workers/lenet.py.
CONVOLUTIONS = {
    "eager": ("native", "onednn", "unfold"),
    "func": ("onednn", "unfold", "separable"),
}


class Setting(NamedTuple):
    """How a peer runs."""

    form: str  # eager, or func
    conv: str
    chunk: int = 1  # candidates at once; always 1 for eager, and all victims in steps
    threads: int = 1


def settings(name, candidates):
    """Lists what is worth trying on two cores."""
    form = name.removeprefix("torch-")
    chunks = (1,) if form == "eager" else (candidates,)
    return [
        Setting(form, conv, chunk, threads)
        for conv in CONVOLUTIONS[form]
        for chunk in chunks
        for threads in (1, 2)
    ]


class LatentPeer(Peer):
    """Owns the worker process."""

    def __init__(self, python, gpu=False):
        super().__init__(python, "timing.workers.latents", gpu=gpu)

    def load(self, arrays):
        """Sends N victims to the worker, which computes the observed gradients.

        arrays: ``params/NAME`` [N, ...] of LeNet in torch's layout, ``generator/NAME``
        of the decoder, targets [N, Kc], images [N, 1, 3, S, S], latents [N, n], and
        candidates [N, P, n].
        """
        self.send(arrays)

    def judge(self, setting):
        """Times all candidates of all victims: seconds, and their distances."""
        answer = self.ask_one("judge", **setting._asdict())
        return answer["seconds"], np.array(answer["values"])

    def descend(self, setting, **options):
        """Times the steps of all victims: seconds, and the best distance of each."""
        fields = setting._asdict()
        fields.pop("chunk")
        answer = self.ask_one("descend", **fields, **options)
        return answer["seconds"], np.array(answer["values"])
