"""The entry of the speed table about LAMP's proposals.

A candidate is one order of a sentence: the gradient that it gives, and the cosine
distance of each tensor to the observed one. The language model is left out on all
sides. Peers (`timing.peers.lamp`) are found at the best of their settings first:
  torch-eager       one order after another, `torch.autograd.grad`, as LAMP's code
  torch-func        `torch.func.vmap` over orders, 1 or 2 threads
  ...-2-processes   the best of each with the victims dealt to two processes
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kljax import data
from kljax.attacks import Candidate, replay
from kljax.attacks.objectives import cosine_per_tensor
from kljax.attacks.rearranging import SIDE_BY_SIDE, propose
from kljax.core.types import Private, Public
from kljax.models import NETWORKS, from_nnx
from kljax.parallel import fastest_layout, map_victims

from ..device import on_gpu
from ..entry import Entry
from ..peers.lamp import PEERS, LampPeer, fastest
from ..table import as_fields, line
from ..turns import beside_peers, largest_differences, mapped_calls
from ..victims import undefended, view_of

CLASSES = 8


class Work(NamedTuple):
    """What is judged: P orders of one sentence of T tokens of each of N victims."""

    victims: int = 2
    orders: int = 40
    length: int = 16


class Problem:
    """The victims, once for everybody: real sentences, own weights, common guesses."""

    def __init__(self, work):
        dataset = data.load("text", length=work.length)
        spec = dataset.input_spec
        network = NETWORKS["transformer"]
        self.model = from_nnx(
            lambda rngs: network.factory(
                CLASSES, image_shape=(work.length,), rngs=rngs, **spec.sizes
            )
        )
        chosen = data.select(dataset, work.victims, seed=0)
        tokens, self.labels = dataset.fetch(chosen)
        rngs = jax.random.split(jax.random.key(0), work.victims)
        self.params = jax.device_get(
            jax.jit(jax.vmap(lambda rng: self.model.init(rng)[0]))(rngs)
        )
        table = self.params["tokens/embedding"]
        self.sentences = table[np.arange(work.victims)[:, None], tokens]
        draws = np.random.default_rng(0).standard_normal(self.sentences.shape)
        self.guesses = (self.sentences + draws).astype(np.float32)
        self.orders = jax.device_get(
            jax.jit(
                jax.vmap(
                    lambda rng: propose(rng, work.length, work.length, work.orders)
                )
            )(rngs)
        )
        setting = undefended(self.model, spec, classes=CLASSES)
        self.simulation = replay(setting, setting.defence.gates)

    def judge(self, params, sentence, guess, label, orders):
        """Judges all orders [P, T] of the guess of one victim: [P]."""
        targets = jax.nn.one_hot(label, CLASSES)[None]
        nothing = Public(jax.tree.map(jnp.zeros_like, params))

        def upload(x, seen):
            candidate = Candidate(x[None], targets, Private())
            return self.simulation(view_of(params, seen, targets), candidate)

        observed, _ = upload(sentence, nothing)
        missing = {"tokens/embedding": nothing.model["tokens/embedding"]}
        observed = Public(observed.model | missing)
        distance = cosine_per_tensor()

        def judged(order):
            return distance(*upload(guess[order], observed))

        return jax.lax.map(judged, orders, batch_size=SIDE_BY_SIDE)

    def in_torch(self):
        """The same, as `LampPeer.load` wants it."""
        params = {n: v for n, v in self.params.items() if n != "tokens/embedding"}
        return {
            "sentences": self.sentences,
            "guesses": self.guesses,
            "labels": self.labels.astype(np.int64),
            "orders": self.orders.astype(np.int64),
            **params,
        }


def compare(options, work):
    """Candidates per second, ours and the peers', in turns."""
    problem = Problem(work)
    given = (
        problem.params,
        problem.sentences,
        problem.guesses,
        problem.labels,
        problem.orders,
    )
    layout = fastest_layout("victims")
    run = map_victims(problem.judge, layout)
    compile_s = run(*given)[1].compile_s
    with LampPeer(options.torch_python, gpu=on_gpu()) as peer:
        names = [n for n in PEERS if n in options.peers]
        if names:
            peer.load(problem.in_torch())
        rates, chosen, values = beside_peers(
            options.rounds,
            {"ours": mapped_calls(run, given, work.victims * work.orders)},
            [n + end for n in names for end in ("", "-2-processes")],
            partial(fastest, peer),
            peer.candidates,
        )
    settings = {
        "victims": work.victims,
        "orders": work.orders,
        "tokens": work.length,
        "layout": str(layout),
        "compile_s": compile_s,
        "peers": as_fields(chosen),
        "largest_difference_to_peer": largest_differences(values),
    }
    mine = rates.pop("ours")
    return [line("lamp-candidates", mine, rates, "candidates/s", settings)]


ENTRIES = (
    Entry(
        "lamp-candidates",
        "LAMP's proposals: orders of a sentence of 16 tokens, the gradient that each "
        "gives and its cosine distance; in candidates/s",
        compare,
        Work(),
        Work(victims=2, orders=20, length=4),
        peers=PEERS,
    ),
)
