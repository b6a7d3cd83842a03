"""The entry of the speed table about Learning to Invert: examples of its training.

A step simulates the gradients of m images, LeNet at 32x32 and one example each, hashes
them, and moves the inverter by Adam. Images, weights and hashing are the same on all
sides, and so are the losses. Peers (`inverter_peer`):
  torch-eager  one gradient after another (`torch.autograd.grad`), as the paper's code
               computes them before it trains
  torch-func   `torch.func.vmap` of `torch.func.grad` over the images of a step
"""

import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from inverter_peer import PEERS, InverterPeer, fastest
from table import entry, on_gpu, turns

from kljax import defences
from kljax.attacks.hashing import deal, feature_hashing
from kljax.attacks.presets.inverters import draw_layers, run_layers
from kljax.attacks.unordered_loss import unordered_error
from kljax.core.types import Private, Public
from kljax.federated.clients import one_step
from kljax.models import LeNet, from_nnx, losses

CLASSES, SHAPE, PIXELS = 10, (32, 32, 3), 3072


class Work(NamedTuple):
    """What is trained."""

    uploads: int = 64  # m of a step
    steps: int = 10
    width: int = 512
    hashed: int = 4096


WORK = Work()
RATE = 1e-3


class Problem:
    """Images, network and inverter, once for everybody."""

    def __init__(self, work):
        self.work = work
        self.model = from_nnx(lambda rngs: LeNet(CLASSES, image_shape=SHAPE, rngs=rngs))
        draw = np.random.default_rng(0)
        params, self.stats = jax.jit(self.model.init)(jax.random.key(0))
        self.params = {
            n: draw.uniform(-0.5, 0.5, x.shape).astype(np.float32)
            for n, x in params.items()
        }
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
        theirs = in_layout(numbers)
        flat = np.concatenate([theirs[n].ravel() for n in theirs])
        places = np.argsort(flat)  # of our entry number i in their vector
        order, signs = deal(self.entries)
        return {
            "images": np.ascontiguousarray(np.moveaxis(self.images, -1, 2)),
            "truths": self.images.reshape(*self.images.shape[:2], -1),
            "labels": self.labels.astype(np.int64),
            "order": places[np.asarray(order)].astype(np.int64),
            "signs": np.asarray(signs),
            **{f"weights/{n}": x for n, x in in_layout(self.params).items()},
            **{
                f"layers/{i}/{n}": np.asarray(x)
                for i, layer in enumerate(self.layers)
                for n, x in zip(("kernel", "bias"), layer, strict=True)
            },
        }


def in_layout(params):
    """Turns LeNet's arrays to PyTorch's layouts, by its names."""
    turned = {}
    for layer in ("conv1", "conv2", "conv3"):
        turned[f"{layer}/weight"] = params[f"{layer}/kernel"].transpose(3, 2, 0, 1)
        turned[f"{layer}/bias"] = params[f"{layer}/bias"]
    kernel = params["fc/kernel"].reshape(8, 8, 12, CLASSES)
    turned["fc/weight"] = kernel.transpose(3, 2, 0, 1).reshape(CLASSES, -1)
    turned["fc/bias"] = params["fc/bias"]
    return {name: np.ascontiguousarray(x) for name, x in turned.items()}


def compare(options, work=None):
    """Examples per second, ours and the peers', in turns."""
    work = work or WORK
    problem, values = Problem(work), {}
    start = time.perf_counter()
    program, given = problem.compiled()
    compile_s = time.perf_counter() - start
    total = work.uploads * work.steps

    def ours():
        start = time.perf_counter()
        values["ours"] = np.asarray(program(*given))
        return total / (time.perf_counter() - start)

    ours()
    contestants, chosen = {"ours": ours}, {}
    with InverterPeer(options.torch_python, gpu=on_gpu()) as peer:
        names = [name for name in PEERS if name in options.peers]
        if names:
            peer.load(work.hashed, RATE, problem.in_torch())
        for name in names:
            chosen[name] = fastest(peer, name)

            def run_peer(name=name):
                seconds, errors = peer.train(chosen[name])
                values[name] = np.array(errors)
                return total / seconds

            contestants[name] = run_peer
        rates = turns(options.rounds, contestants)
    settings = work._asdict() | {
        "compile_s": compile_s,
        "peers": {name: setting._asdict() for name, setting in chosen.items()},
        # What says that all do the same work.
        "largest_difference_to_peer": {
            name: float(np.max(np.abs(values[name] - values["ours"])))
            for name in chosen
        },
    }
    mine = rates.pop("ours")
    return [entry("lti-train", mine, rates, "examples/s", settings)]


NAMES = {"lti-train": compare}
