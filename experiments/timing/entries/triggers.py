"""Entries of the speed table about trigger inversion: all pairs of classes at once.

All 90 pairs of ten classes, 8 examples each, from the same starts on both sides: ours
is one compiled call, the peer eager PyTorch that takes one pair after another, as the
code of FLIP does. The second peer is PyTorch written to take all pairs side by side.
Cold, a compilation is in every time of ours; the peers have none.
"""

from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from kljax.federated.trigger_inversion import draw_start, invert
from kljax.models import Dense, LeNet, from_nnx

from ..device import on_gpu
from ..entry import Entry
from ..peers.triggers import PEERS, TriggerPeer, fastest
from ..table import as_fields, warm_and_cold
from ..turns import beside_peers, calls, cold_calls

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


def compare(name, options, work):
    """Pairs' steps per second, warm and cold, beside the peers', in turns."""
    pairs, spent = Pairs(work), []
    total = len(pairs.targets) * work.steps
    ours = calls(*pairs.compiled(work.steps), total)
    ours()
    own = {
        "ours": ours,
        "cold": cold_calls(lambda: pairs.compiled(work.steps), total, spent),
    }
    peers = [peer for peer in options.peers if peer in PEERS]
    with TriggerPeer(options.torch_python, gpu=on_gpu()) as peer:
        if peers:
            peer.load(work.network, pairs.in_torch())

        def run(setting):
            seconds, found = peer.search(setting, work.steps)
            return total / seconds, found

        rates, chosen, values = beside_peers(
            options.rounds,
            own,
            peers,
            lambda label: fastest(peer, label, work.steps),
            run,
        )
    settings = work._asdict() | {
        "pairs": len(pairs.targets),
        "cold_s": spent,
        "peers": as_fields(chosen),
        "sizes": {label: summary(found) for label, found in values.items()},
    }
    return warm_and_cold(name, rates, "steps of a pair/s", settings)


def summary(found):
    """Says how many pairs succeeded, and how large their median mask is."""
    there = np.isfinite(found)
    median = float(np.median(found[there])) if there.any() else None
    return {"succeeded": int(there.sum()), "median": median}


SENTENCES = {
    "trigger-inversion": "triggers of all 90 pairs of ten classes, 20 steps, dense "
    "network at 8x8, warm and cold; in steps of a pair/s, beside eager PyTorch that "
    "takes pair after pair, and one that takes them side by side",
    "trigger-inversion-lenet": "the same for 10 steps on LeNet at 32x32",
}
ENTRIES = tuple(
    Entry(
        name,
        sentence,
        partial(compare, name),
        WORK[name],
        WORK[name]._replace(examples=2, steps=2),
        peers=PEERS,
    )
    for name, sentence in SENTENCES.items()
)
