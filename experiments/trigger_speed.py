"""Entries of the speed table about trigger inversion: all pairs of classes at once.

All 90 pairs of ten classes, 8 examples each, from the same starts on both sides: ours
is one compiled call, the peer eager PyTorch that takes one pair after another, as the
code of FLIP does. The second peer is PyTorch written to take all pairs side by side.
Cold, a compilation is in every time of ours; the peers have none.
"""

import time
from typing import NamedTuple

import jax
import numpy as np
from table import as_fields, beside_peers, cold_seconds, on_gpu, warm_and_cold
from trigger_peer import PEERS, TriggerPeer, fastest

from kljax.federated.trigger_inversion import draw_start, invert
from kljax.models import Dense, LeNet, from_nnx

CLASSES = 10


class Work(NamedTuple):
    """What is inverted."""

    network: str
    side: int  # of the images
    examples: int  # of each class
    steps: int


WORK = {
    "trigger-inversion": Work("dense", 8, 8, 20),
    "trigger-inversion-lenet": Work("lenet", 32, 8, 10),
}
NETWORKS = {"dense": Dense, "lenet": LeNet}


class Pairs:
    """All pairs of classes, on images and weights that are drawn."""

    def __init__(self, work):
        self.shape = (work.side, work.side, 3)
        kind = NETWORKS[work.network]
        self.model = from_nnx(
            lambda rngs: kind(CLASSES, image_shape=self.shape, rngs=rngs)
        )
        self.params, self.stats = jax.jit(self.model.init)(jax.random.key(0))
        draw = np.random.default_rng(0)
        of_class = draw.random((CLASSES, work.examples, *self.shape), np.float32)
        sources, self.targets = np.nonzero(~np.eye(CLASSES, dtype=bool))
        self.images = of_class[sources]
        rngs = jax.random.split(jax.random.key(1), len(sources))
        starts = jax.jit(jax.vmap(lambda rng: draw_start(rng, self.shape)))(rngs)
        self.starts = jax.device_get(starts)
        self.there = np.ones(work.examples, bool)

    def compiled(self, steps):
        """Makes our one call: sizes [pairs] of what is found."""

        def search(params, images, targets, starts):
            def classify(images):
                return self.model.apply(params, self.stats, images, train=False).logits

            def of_pair(images, target, start):
                found, _ = invert(classify, images, self.there, target, start, steps)
                return found.size

            return jax.vmap(of_pair)(images, targets, starts)

        given = self.params, self.images, self.targets, self.starts
        return jax.jit(search).lower(*given).compile(), given

    def in_torch(self):
        """Gives what `TriggerPeer.load` takes."""
        weights = {f"weights/{n}": np.asarray(x) for n, x in self.params.items()}
        mask, pattern = self.starts
        there = {"images": self.images, "targets": self.targets}
        return weights | there | {"masks": mask, "patterns": pattern}


def compare(name, options, work=None):
    """Pairs' steps per second, warm and cold, beside the peers', in turns."""
    work = work or WORK[name]
    pairs = Pairs(work)
    total, sizes, spent = len(pairs.targets) * work.steps, {}, []
    program, given = pairs.compiled(work.steps)

    def ours():
        start = time.perf_counter()
        sizes["ours"] = np.asarray(program(*given))
        return total / (time.perf_counter() - start)

    def cold():
        spent.append(cold_seconds(lambda: pairs.compiled(work.steps)))
        return total / spent[-1]

    ours()
    peers = [peer for peer in options.peers if peer in PEERS]
    with TriggerPeer(options.torch_python, gpu=on_gpu()) as peer:
        if peers:
            peer.load(work.network, pairs.in_torch())

        def run(setting):
            seconds, found = peer.search(setting, work.steps)
            return total / seconds, found

        values, chosen, theirs = beside_peers(
            options.rounds,
            {"ours": ours, "cold": cold},
            peers,
            lambda label: fastest(peer, label, work.steps),
            run,
        )
    settings = work._asdict() | {
        "pairs": len(pairs.targets),
        "cold_s": spent,
        "peers": as_fields(chosen),
        "sizes": {label: summary(found) for label, found in (sizes | theirs).items()},
    }
    return warm_and_cold(name, values, "steps of a pair/s", settings)


def summary(found):
    """Says how many pairs succeeded, and how large their median mask is."""
    there = np.isfinite(found)
    median = float(np.median(found[there])) if there.any() else None
    return {"succeeded": int(there.sum()), "median": median}


NAMES = {
    name: lambda options, name=name: compare(name, options)
    for name in ("trigger-inversion", "trigger-inversion-lenet")
}
