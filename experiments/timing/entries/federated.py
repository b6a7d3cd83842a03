"""One federated round: ours, its peers', its memory, its layouts.

The work of a round is the same for everybody and checked to be: the aggregated
parameters of a peer must agree with ours (`agreement`), or there is no entry. What is
timed is all of a round: reading the batches from arrays on the host, local training,
aggregation. Every round starts from the same weights.
"""

import contextlib
import functools
import json
import time
from typing import NamedTuple

import jax
import numpy as np
import optax

from kljax import data, defences
from kljax.core.types import Private, Public
from kljax.federated.algorithms import fedavg
from kljax.federated.clients import Batches, local_gradient
from kljax.models import LeNet, from_nnx, losses, resnet20
from kljax.parallel import Layout, fastest_layout

from ..agreement import agreement, by_name
from ..device import on_gpu
from ..entry import Entry
from ..own_images import epochs, noise
from ..peak import matmul_peak, product_flops
from ..peers.federated import SETTINGS, FederatedPeer, Setting, fastest
from ..table import as_fields, line
from ..turns import turns
from ..tutorial_cnn import TutorialCNN
from ..victims import CLASSES, SHAPE

RNG = 0  # seed of everything


class Work(NamedTuple):
    """What a round consists of.

    Attributes:
      own: images that a client has, gone through in epochs; 0 for batches drawn from
        images that all share.
    """

    network: str
    clients: int
    steps: int
    batch: int
    checked: int  # steps after which the peers' aggregate is compared with ours
    tolerance: float  # of `agreement` then
    own: int = 0
    rate: float = 0.05  # of the clients' plain SGD

    @property
    def examples(self):
        """Counts the examples that a round trains on."""
        return self.clients * self.steps * self.batch

    @property
    def pace(self):
        """Gives the unit of the entry, and how many of them a round is in a second."""
        return ("rounds/min", 60) if self.own else ("examples/s", self.examples)


# ResNet-20 on batches of ten is chaotic: from step to step a difference grows tenfold,
# and after five PyTorch's two sets of kernels, at the same weights and batches, are
# half a round apart (0.46 for two clients, rate 0.05). So one step of each client is
# compared there, with all the rest of the round. The CNN has kinks (ReLU, max-pool),
# and rounding decides on which side of one an example is: from PyTorch's aggregate
# ours is 2e-4 apart after one step of 100 clients, 4e-4 after 4, 1e-2 after 40.
WORK = {
    "fl-lenet-b10": Work("lenet", 64, 10, 10, checked=10, tolerance=1e-4),
    "fl-lenet-b32": Work("lenet", 64, 10, 32, checked=10, tolerance=1e-4),
    "fl-resnet20-b10": Work("resnet20", 8, 5, 10, checked=1, tolerance=2e-3),
    "fl-resnet20-b32": Work("resnet20", 8, 5, 32, checked=1, tolerance=2e-3),
    "fl-cnn-b50": Work(
        "tutorial-cnn", 100, 40, 50, checked=4, tolerance=2e-3, own=400, rate=0.1
    ),
}
# Rounds a minute that others published for an entry; see speed/federated.md.
PUBLISHED = {
    "fl-cnn-b50": {
        "rounds_per_min": {"BlazeFL, 6 processes": 3.7, "Flower, 12 in parallel": 2.7},
        "device": "one NVIDIA A100 40GB, 12 vCPUs (Google Cloud a2-highgpu-1g)",
        "source": "github.com/kitsuyaazuma/BlazeFL, README.md and "
        "docs/imgs/benchmark_cnn.png at 2390a15; read off the figure",
    }
}
SEARCHED = 10  # steps at most, while the best setting of a peer is looked for
NETWORKS = {"lenet": LeNet, "resnet20": resnet20, "tutorial-cnn": TutorialCNN}


def network(name, convolution="auto", **options):
    """The network with its ordinary initialiser."""
    return from_nnx(
        lambda rngs: NETWORKS[name](CLASSES, image_shape=SHAPE, rngs=rngs, **options),
        convolution=convolution,
    )


class Federation:
    """Clients with images, real ones where they share them, and rounds over them."""

    def __init__(self, work, rounds):
        self.work, self.rounds = work, rounds
        draws = np.random.default_rng(RNG)
        shape = (work.clients, work.steps, work.batch)
        if work.own:
            self.dataset = noise(work.clients * work.own, SHAPE, CLASSES, draws)
            self.batches = epochs(work, draws)
        else:
            self.dataset = data.load("digits")
            self.batches = draws.integers(0, len(self.dataset), shape)
        # More than are trained on, and unequal: the mean is a weighted one.
        least = work.steps * work.batch
        weights = draws.integers(least, 3 * least, work.clients)
        self.weights = weights.astype(np.float32)
        rng = jax.random.key(RNG)
        self.server = rounds.init(rng)
        self.states = rounds.init_clients(rng, self.server, work.clients)

    def fetch(self, ids, steps=None):
        """Reads the batches of some clients; only the first `steps` are valid."""
        images, labels = data.fetch_batches(self.dataset, self.batches[ids])
        valid = np.ones(labels.shape[:2], bool)
        if steps is not None:
            valid[:, steps:] = False
        return Batches(images, labels, valid), self.weights[ids]

    def round(self, fetch=None, on_block=None):
        """Runs one round; gives its seconds, those of compiling and the new server."""
        start = time.perf_counter()
        server, info = self.rounds.run_round(
            jax.random.key(RNG),
            self.server,
            self.states,
            np.arange(self.work.clients),
            fetch or self.fetch,
            on_block,
        )
        jax.block_until_ready(server)
        compile_s = info.timing.compile_s
        return time.perf_counter() - start - compile_s, compile_s, server

    def arrays(self):
        """The same for `FederatedPeer.load`."""
        images, labels = self.dataset.fetch(np.arange(len(self.dataset)))
        return {
            "images": images,
            "labels": labels,
            "batches": self.batches,
            "weights": self.weights,
        } | by_name(self.server)


def averaging(work, layout=None, convolution="auto"):
    """Makes the federation of an entry: FedAvg with plain SGD."""
    model = network(work.network, convolution)
    rounds = fedavg(model, losses.cross_entropy, optax.sgd(work.rate), layout=layout)
    return Federation(work, rounds)


def flops_per_example(work):
    """Floating-point operations in products, for one example of a local step."""
    model = network(work.network, "matmul")
    step = local_gradient(model, losses.cross_entropy, defences.none(), train=True)
    params, stats = jax.eval_shape(model.init, jax.random.key(RNG))
    images = np.zeros((work.batch, *SHAPE), np.float32)
    targets = np.zeros((work.batch, CLASSES), np.float32)
    public, rng = Public(params), jax.random.key(RNG)
    flops = product_flops(
        lambda public, stats: step(rng, public, stats, Private(), images, targets),
        public,
        stats,
    )
    return flops / work.batch


def local_step(work, clients, convolution="auto"):
    """Gives one local step of one client, and its arguments of `clients` of them."""
    model = network(work.network, convolution)
    gradient = local_gradient(model, losses.cross_entropy, defences.none(), train=True)
    params, stats = model.init(jax.random.key(RNG))

    def step(params, stats, images, targets):
        rng = jax.random.key(RNG)
        sent = gradient(rng, Public(params), stats, Private(), images, targets)
        return jax.tree.map(
            lambda x, grad: x - work.rate * grad, params, sent.public.model
        ), sent.stats

    def each(x):
        return np.broadcast_to(x, (clients, *np.shape(x)))

    images = np.random.default_rng(RNG).random((work.batch, *SHAPE), np.float32)
    targets = np.eye(CLASSES, dtype=np.float32)[np.arange(work.batch) % CLASSES]
    return step, jax.tree.map(each, (params, stats, images, targets))


def compare(name, options, work):
    """Ours beside the peers: examples per second, or rounds per minute."""
    ours = averaging(work)
    # The same compiled round as the timed ones.
    _, compile_s, server = ours.round(functools.partial(ours.fetch, steps=work.checked))
    begin, ended = by_name(ours.server), by_name(server)
    unit, amount = work.pace
    contestants = {"ours": lambda: amount / ours.round()[0]}
    chosen, apart, first_s = {}, {}, {}
    with contextlib.ExitStack() as stack:
        for title, peer in _peers(stack, options).items():
            peer.load(work.network, work.rate, ours.arrays())
            chosen[title], first_s[title] = _best(name, title, peer, options)
            theirs = peer.round(chosen[title], work.checked, result=True).arrays
            biased = not title.startswith("torch")
            apart[title] = agreement(work, begin, ended, theirs, biased)
            print(f"{name}: {title} agrees to {apart[title]:.1e}", flush=True)
            if not apart[title] <= work.tolerance:
                raise RuntimeError(
                    f"{title} does not do the work of {name}: apart by "
                    f"{apart[title]:.1e} of what a round changes, and "
                    f"{work.tolerance:.0e} is allowed"
                )
            contestants[title] = lambda peer=peer, setting=chosen[title]: (
                amount / peer.round(setting).seconds
            )
        values = turns(options.rounds, contestants)
    mine = values.pop("ours")
    flops, peak = flops_per_example(work), matmul_peak(options.tiny)
    settings = {
        "work": work._asdict(),
        "layout": str(fastest_layout("clients")),
        "compile_s": compile_s,
        "peers": as_fields(chosen),
        "first_round_s": first_s,
        "agreement": apart,
        "flops_per_example": flops,
        "matmul_peak_gflops": peak / 1e9,
    }
    if not chosen:  # nobody else has said that it is right
        settings["difference_to_slow_form"] = slow_round(work)
    if name in PUBLISHED and work == WORK[name]:
        settings["published"] = PUBLISHED[name]
    share = float(np.median(mine)) / amount * work.examples * flops / peak
    return [line(name, mine, values, unit, settings, share)]


def slow_round(work):
    """Compares the round of two clients with its slow form, see `agreement`.

    The slow form has `lax.conv` and no batching.
    """
    work, ended = work._replace(clients=2), []
    for layout, convolution in ((None, "auto"), (Layout("loop"), "lax")):
        federation = averaging(work, layout, convolution)
        fetch = functools.partial(federation.fetch, steps=work.checked)
        ended.append(by_name(federation.round(fetch)[2]))
    begin = by_name(federation.server)
    return agreement(work, begin, *ended, biased=True)


def _peers(stack, options):
    """Starts the processes of the peers asked for; titles of one library share them."""
    started, peers = {}, {}
    for title in (title for title in SETTINGS if title in options.peers):
        library, processes = title.split("-")[0], 2 if "torch" in title else 1
        if library not in started:
            python = getattr(options, f"{library}_python")
            peer = FederatedPeer(library, python, processes, on_gpu())
            started[library] = stack.enter_context(peer)
        peers[title] = started[library]
    return peers


def _best(name, title, peer, options):
    """The peer's best setting here, or that of an earlier run."""
    settings = peer.settings[title]
    if options.peers_from:
        for made in json.loads(options.peers_from.read_text()):
            if made["name"] == name and title in made["settings"]["peers"]:
                settings = [Setting(**made["settings"]["peers"][title])]
    return fastest(peer, settings, SEARCHED)


def shrunken(work):
    """Makes it tiny."""
    own = {"own": 4} if work.own else {}
    return work._replace(clients=2, steps=2, batch=2, checked=1, **own)


SENTENCES = {
    "fl-lenet-b10": "one round of federated averaging, 64 clients x 10 local steps x "
    "batch 10, with all its cost; in examples/s",
    "fl-lenet-b32": "the same with batch 32",
    "fl-resnet20-b10": "8 clients x 5 steps x batch 10 of ResNet-20",
    "fl-resnet20-b32": "8 clients x 5 steps x batch 32 of ResNet-20",
    "fl-cnn-b50": "the work of BlazeFL's published figure: 100 clients, 400 images "
    "each, 5 epochs, batch 50, PyTorch's tutorial's CNN; in rounds/min",
}
ENTRIES = tuple(
    Entry(
        name,
        sentence,
        functools.partial(compare, name),
        WORK[name],
        shrunken(WORK[name]),
        peers=tuple(SETTINGS),
    )
    for name, sentence in SENTENCES.items()
)
