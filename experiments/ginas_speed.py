"""Entries of the speed table about the search of GI-NAS: candidates judged, per second.

A candidate is one untrained network of its own architecture: the images that it makes,
LeNet's gradient at them, and its cosine distance to the observed one. Networks and
weights are drawn beforehand, the same for all. Ours is one compiled program for all
architectures; cold, its compilation is in every time. Peers (`ginas_peer`) are found at
the best of their settings first:
  torch-eager  one network after another, built without what it does not use, as the
               code of GI-NAS does; it has nothing to compile
  torch-func   masked networks side by side, by `torch.func.vmap`
"""

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ginas_peer import PEERS, GinasPeer, fastest
from jax.tree_util import tree_flatten_with_path
from table import entry, on_gpu, turns

from kljax.attacks.architectures import Space, check_space
from kljax.attacks.encoder_decoders import doubling_matrix, draw_weights, generate
from kljax.attacks.objectives import cosine
from kljax.attacks.untrained import judge_each
from kljax.models import LeNet, from_nnx
from kljax.models.losses import cross_entropy

CLASSES = 10


class Work(NamedTuple):
    """What is judged: N networks of C channels, by images of one batch of B."""

    candidates: int = 20
    examples: int = 4
    channels: int = 16
    scales: int = 4
    side: int = 32


WORK = Work()


class Problem:
    """Networks, their weights, and a victim; once for everybody."""

    def __init__(self, work):
        shape = (work.side, work.side, 3)
        self.work = work
        self.space = check_space(
            Space(shape, work.channels, work.scales, 3, work.channels)
        )
        self.model = from_nnx(lambda rngs: LeNet(CLASSES, image_shape=shape, rngs=rngs))
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

        def judge(params, networks, noise, images):
            observed, distance = self.gradient(params, images), cosine()

            def judged(index):
                one, weights = jax.tree.map(lambda x: x[index], networks)
                made = generate(self.space, one, weights, noise)
                return distance(self.gradient(params, made), observed)

            return judge_each(judged, self.work.candidates, side_by_side)

        given = self.params, self.networks, self.noise, self.images
        return jax.jit(judge).lower(*given).compile(), given

    def in_torch(self):
        """Gives what `peers.encoder_decoders.Networks` takes."""
        params = {n: np.asarray(x) for n, x in self.params.items()}
        victim = {}
        for layer in ("conv1", "conv2", "conv3"):
            kernel = params[f"{layer}/kernel"]
            victim[f"{layer}/weight"] = kernel.transpose(3, 2, 0, 1)
            victim[f"{layer}/bias"] = params[f"{layer}/bias"]
        side = self.work.side // 4
        kernel = params["fc/kernel"].reshape(side, side, 12, CLASSES)
        victim["fc/weight"] = kernel.transpose(3, 2, 0, 1).reshape(CLASSES, -1)
        victim["fc/bias"] = params["fc/bias"]
        one, weights = self.networks
        leaves, _ = tree_flatten_with_path(weights)
        arrays = {"noise": self.noise, "images": self.images, "onehots": self.targets}
        arrays |= {f"victim/{n}": np.ascontiguousarray(x) for n, x in victim.items()}
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


def compare(options, work=None):
    """Candidates per second, warm and cold, beside the peers', in turns."""
    work = work or WORK
    problem, values, spent = Problem(work), {}, []
    program, given = problem.compiled()

    def ours():
        start = time.perf_counter()
        values["ours"] = np.asarray(program(*given))
        return work.candidates / (time.perf_counter() - start)

    def cold():
        jax.clear_caches()
        jax.config.update("jax_enable_compilation_cache", False)
        start = time.perf_counter()
        program, given = problem.compiled()
        np.asarray(program(*given))
        spent.append(time.perf_counter() - start)
        jax.config.update("jax_enable_compilation_cache", True)
        return work.candidates / spent[-1]

    ours()
    contestants, chosen = {"ours": ours, "cold": cold}, {}
    with GinasPeer(options.torch_python, gpu=on_gpu()) as peer:
        names = [name for name in PEERS if name in options.peers]
        if names:
            peer.load(problem.in_torch())
        for name in names:
            chosen[name] = fastest(peer, name)

            def run_peer(name=name):
                made = peer.candidates(chosen[name])
                values[name] = np.array(made.values)
                return made.per_second

            contestants[name] = run_peer
        rates = turns(options.rounds, contestants)
    mine, first = rates.pop("ours"), rates.pop("cold")
    settings = work._asdict() | {
        "cold_s": spent,
        "peers": {name: setting._asdict() for name, setting in chosen.items()},
        # What says that all do the same work.
        "largest_difference_to_peer": {
            name: float(np.max(np.abs(values[name] - values["ours"])))
            for name in chosen
        },
    }
    return [
        entry(f"ginas-search-{how}", own, rates, "candidates/s", settings)
        for how, own in (("warm", mine), ("cold", first))
    ]


NAMES = {"ginas-search": compare}
