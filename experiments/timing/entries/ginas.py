"""Entries of the speed table about the search of GI-NAS: candidates judged, per second.

A candidate is one untrained network of its own architecture: the images that it makes,
LeNet's gradient at them, and its cosine distance to the observed one. Networks and
weights are drawn beforehand, the same for all; LeNet's are of U(-.5, .5). What is timed
is all candidates of one victim, as `kljax.parallel.map_victims` runs them: one compiled
program for all architectures, candidates dealt to all devices (on a CPU one for each
core), one after another on each. Cold, its compilation is in every time. Peers
(`timing.peers.ginas`) are found at the best of their settings first, threads and
processes among them:
  torch-eager  one network after another, built without what it does not use, as the
               code of GI-NAS does; it has nothing to compile
  torch-func   masked networks side by side, by `torch.func.vmap`
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import tree_flatten_with_path

from kljax.attacks.architectures import Space, check_space
from kljax.attacks.encoder_decoders import (
    doubling_matrix,
    draw_weights,
    generate,
    name_weights,
)
from kljax.attacks.objectives import cosine
from kljax.attacks.untrained import judge_each
from kljax.models.losses import cross_entropy
from kljax.parallel import map_victims

from ..device import on_gpu
from ..entry import Entry
from ..peers.ginas import PEERS, GinasPeer, fastest
from ..table import as_fields, warm_and_cold
from ..torch_layouts import lenet_in_torch
from ..turns import beside_peers, calls, cold_calls, largest_differences
from ..victims import CLASSES, lenet


class Work(NamedTuple):
    """What is judged: N networks of C channels, by images of one batch of B."""

    candidates: int = 20
    examples: int = 4
    channels: int = 16
    scales: int = 4
    side: int = 32


class Problem:
    """Networks, their weights, and a victim; once for everybody."""

    def __init__(self, work):
        shape = (work.side, work.side, 3)
        self.work = work
        self.space = check_space(
            Space(shape, work.channels, work.scales, 3, work.channels)
        )
        self.model = lenet(shape)
        self.params, self.stats = jax.jit(self.model.init)(jax.random.key(0))
        draw = np.random.default_rng(0)
        batch = (work.examples, *shape)
        self.images = draw.random(batch, np.float32)
        self.noise = draw.standard_normal(batch).astype(np.float32)
        self.targets = np.eye(CLASSES, dtype=np.float32)[np.arange(work.examples)]

        def network(rng):
            rng_architecture, rng_weights = jax.random.split(rng)
            one = self.space.draw(rng_architecture)
            return one, draw_weights(rng_weights, self.space, one)

        rngs = jax.random.split(jax.random.key(1), work.candidates)
        self.networks = jax.device_get(jax.jit(jax.vmap(network))(rngs))

    def gradient(self, params, images):
        """Gives the gradient of the batch at some images."""

        def loss(params):
            out = self.model.apply(params, self.stats, images, train=False)
            return jnp.mean(cross_entropy(out.logits, self.targets))

        return jax.grad(loss)(params)

    def compiled(self):
        """Makes our one call: distances [N]."""
        side_by_side = 20 if on_gpu() else 1

        def judge(params, noise, images, networks):
            observed, distance = self.gradient(params, images), cosine()

            def judged(index):
                one, weights = jax.tree.map(lambda x: x[index], networks)
                made = generate(self.space, one, weights, noise)
                return distance(self.gradient(params, made), observed)

            return judge_each(judged, self.work.candidates, side_by_side)

        victim = self.params, self.noise, self.images
        victim = jax.tree.map(lambda x: np.asarray(x)[None], victim)
        run = map_victims(judge, shared=self.networks)
        return lambda *given: run(*given)[0][0], victim

    def in_torch(self):
        """Gives what `timing.workers.ginas.Networks` takes."""
        one, weights = self.networks
        named = jax.vmap(partial(name_weights, self.space))(one, weights)
        leaves, _ = tree_flatten_with_path(named)
        arrays = {"noise": self.noise, "images": self.images, "onehots": self.targets}
        victim = lenet_in_torch(self.params)
        arrays |= {f"victim/{n}": x for n, x in victim.items()}
        arrays |= {f"architecture/{n}": x for n, x in one._asdict().items()}
        arrays |= {
            "weights/"
            + "/".join(
                str(getattr(p, "key", getattr(p, "idx", p))) for p in path
            ): np.asarray(x)
            for path, x in leaves
        }
        for k in range(1, self.work.scales + 1):
            side = self.work.side >> k
            matrices = np.stack([doubling_matrix(n, side) for n in range(5)])
            arrays[f"matrix/{side}"] = matrices
        return arrays


def compare(options, work):
    """Candidates per second, warm and cold, beside the peers', in turns."""
    problem, spent = Problem(work), []
    ours = calls(*problem.compiled(), work.candidates)
    ours()
    own = {
        "ours": ours,
        "cold": cold_calls(problem.compiled, work.candidates, spent),
    }
    with GinasPeer(options.torch_python, gpu=on_gpu()) as peer:
        names = [name for name in PEERS if name in options.peers]
        if names:
            peer.load(problem.in_torch())
        rates, chosen, values = beside_peers(
            options.rounds, own, names, partial(fastest, peer), peer.candidates
        )
    settings = work._asdict() | {
        "cold_s": spent,
        "peers": as_fields(chosen),
        "largest_difference_to_peer": largest_differences(values),
    }
    return warm_and_cold("ginas-search", rates, "candidates/s", settings)


ENTRIES = (
    Entry(
        "ginas-search",
        "the search of GI-NAS: 20 untrained networks of 16 channels at 32x32, each of "
        "its own architecture, the gradient of LeNet that four images of it give and "
        "its cosine distance, warm and cold; in candidates/s, beside eager PyTorch "
        "that builds one after another",
        compare,
        Work(),
        Work(candidates=4, examples=2, channels=8, scales=1, side=8),
        peers=PEERS,
    ),
)
