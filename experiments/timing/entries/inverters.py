"""The entry of the speed table about Learning to Invert: examples of its training.

A step simulates the gradients of m images, LeNet at 32x32 and one example each, hashes
them, and moves the inverter by Adam. Images, weights and hashing are the same on all
sides, and so are the losses. Peers (`timing.peers.inverters`):
  torch-eager  one gradient after another (`torch.autograd.grad`), as the paper's code
               computes them before it trains
  torch-func   `torch.func.vmap` of `torch.func.grad` over the images of a step
"""

import time
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kljax import defences
from kljax.attacks.hashing import deal, feature_hashing
from kljax.attacks.presets.inverters import draw_layers, run_layers
from kljax.attacks.unordered_loss import unordered_error
from kljax.core.types import Private, Public
from kljax.federated.clients import one_step
from kljax.models import losses

from ..device import on_gpu
from ..entry import Entry
from ..peers.inverters import PEERS, InverterPeer, fastest
from ..table import as_fields, line
from ..torch_layouts import lenet_in_torch
from ..turns import beside_peers, calls, largest_differences
from ..victims import CLASSES, SHAPE, lenet

PIXELS = 3072


class Work(NamedTuple):
    """What is trained."""

    uploads: int = 64  # m of a step
    steps: int = 10
    width: int = 512
    hashed: int = 4096


RATE = 1e-3


class Problem:
    """Images, network and inverter, once for everybody."""

    def __init__(self, work):
        self.work = work
        self.model = lenet()
        draw = np.random.default_rng(0)
        made = jax.jit(self.model.init)(jax.random.key(0))
        self.params, self.stats = jax.device_get(made)
        shape = work.steps, work.uploads
        self.images = draw.random((*shape, *SHAPE), np.float32)
        self.labels = draw.integers(0, CLASSES, shape)
        self.entries = sum(x.size for x in self.params.values())
        widths = (work.hashed, work.width, work.width, PIXELS)
        self.layers = jax.device_get(draw_layers(jax.random.key(1), widths))

    def compiled(self):
        """Makes our one call: all steps, and the loss of each."""
        step = one_step(self.model, losses.cross_entropy, defences.none(), train=True)
        hashing = feature_hashing(self.entries, self.work.hashed)
        optimiser = optax.adam(RATE)

        def train(params, images, labels, layers):
            def simulate(image, label):
                target = jax.nn.one_hot(label, CLASSES)[None]
                public = Public(params)
                rng = jax.random.key(0)
                sent = step(
                    rng, public, self.stats, Private(), image[None], target
                ).sent
                flat = [jnp.ravel(x) for x in jax.tree.leaves(sent)]
                return hashing(jnp.concatenate(flat))

            def error(layers, hashed, images):
                def one(values, image):
                    found = run_layers(layers, values).reshape(1, *SHAPE)
                    return unordered_error(found, image[None])

                return jnp.mean(jax.vmap(one)(hashed, images))

            def move(carried, batch):
                layers, state = carried
                images, labels = batch
                hashed = jax.vmap(simulate)(images, labels)
                value, grads = jax.value_and_grad(error)(layers, hashed, images)
                updates, state = optimiser.update(grads, state, layers)
                return (optax.apply_updates(layers, updates), state), value

            start = layers, optimiser.init(layers)
            return jax.lax.scan(move, start, (images, labels))[1]

        given = self.params, self.images, self.labels, self.layers
        return jax.jit(train).lower(*given).compile(), given

    def in_torch(self):
        """Gives what `InverterPeer.load` takes: layouts and numbering are PyTorch's."""
        numbers, first = {}, 0
        for name in sorted(self.params):  # as JAX orders the leaves of a mapping
            size = self.params[name].size
            own = np.arange(first, first + size)
            numbers[name] = own.reshape(self.params[name].shape)
            first += size
        theirs = lenet_in_torch(numbers)
        flat = np.concatenate([theirs[n].ravel() for n in theirs])
        places = np.argsort(flat)  # of our entry number i in their vector
        order, signs = deal(self.entries)
        return {
            "images": np.ascontiguousarray(np.moveaxis(self.images, -1, 2)),
            "truths": self.images.reshape(*self.images.shape[:2], -1),
            "labels": self.labels.astype(np.int64),
            "order": places[np.asarray(order)].astype(np.int64),
            "signs": np.asarray(signs),
            **{f"weights/{n}": x for n, x in lenet_in_torch(self.params).items()},
            **{
                f"layers/{i}/{n}": np.asarray(x)
                for i, layer in enumerate(self.layers)
                for n, x in zip(("kernel", "bias"), layer, strict=True)
            },
        }


def compare(options, work):
    """Examples per second, ours and the peers', in turns."""
    problem, total = Problem(work), work.uploads * work.steps
    start = time.perf_counter()
    program, given = problem.compiled()
    compile_s = time.perf_counter() - start
    ours = calls(program, given, total)
    ours()
    with InverterPeer(options.torch_python, gpu=on_gpu()) as peer:
        names = [name for name in PEERS if name in options.peers]
        if names:
            peer.load(work.hashed, RATE, problem.in_torch())

        def run(setting):
            seconds, errors = peer.train(setting)
            return total / seconds, errors

        rates, chosen, values = beside_peers(
            options.rounds, {"ours": ours}, names, partial(fastest, peer), run
        )
    settings = work._asdict() | {
        "compile_s": compile_s,
        "peers": as_fields(chosen),
        "largest_difference_to_peer": largest_differences(values),
    }
    mine = rates.pop("ours")
    return [line("lti-train", mine, rates, "examples/s", settings)]


ENTRIES = (
    Entry(
        "lti-train",
        "Learning to Invert: 10 steps of 64 simulated gradients of LeNet, hashed to "
        "4,096, and an inverter of width 512; in examples/s",
        compare,
        Work(),
        Work(uploads=4, steps=2, width=8, hashed=64),
        peers=PEERS,
    ),
)
