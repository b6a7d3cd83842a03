"""The entry of the speed table about more and more clients: time and memory."""

from typing import NamedTuple

import optax

from kljax.defences.lock import key_lock
from kljax.federated.algorithms import fedkl
from kljax.federated.rounds import nbytes
from kljax.models import losses, site_widths
from kljax.parallel import fastest_layout

from ..entry import Entry
from ..memory import Watch
from ..table import line
from ..turns import turns
from ..victims import SHAPE
from .federated import WORK as ROUNDS
from .federated import Federation, Work, network, shrunken


class Growth(NamedTuple):
    """Rounds of several numbers of clients."""

    counts: tuple[int, ...]
    round: Work


WORK = Growth((64, 512, 10_000), ROUNDS["fl-lenet-b10"])


def grow(options, work):
    """FedKL for more and more clients: seconds per client, and memory.

    One `Rounds` for all numbers of clients: one layout, one chunk, one compilation.
    """
    counts, work = work
    sites = ("norm1",)
    model = network(work.network, lockable=sites)
    lock = key_lock(sites, site_widths(model, sites, SHAPE))
    rounds = fedkl(model, losses.cross_entropy, optax.sgd(work.rate), lock=lock)
    federations = {
        count: Federation(work._replace(clients=count), rounds) for count in counts
    }
    _, compile_s, _ = federations[min(counts)].round()
    memory = {}
    # From few to many: a GPU's peak can only rise.
    for count in sorted(counts):
        watch = Watch()
        federation = federations[count]
        _, again_s, _ = federation.round(
            watch.sampling(federation.fetch), watch.sampling(lambda done: None)
        )
        memory[count] = {
            **watch.report(),
            "host_state_bytes": nbytes(federation.states),
            "compile_s": again_s,
        }
        print(f"fl-scale, {count} clients: {memory[count]}", flush=True)
    values = turns(
        options.rounds,
        {n: lambda n=n: federations[n].round()[0] / n for n in counts},
    )
    common = {"algorithm": "fedkl", "layout": str(fastest_layout("clients"))}
    return [
        line(
            f"fl-scale-{count}",
            values[count],
            {},
            "s/client",
            common
            | {"work": federations[count].work._asdict(), "compile_s": compile_s}
            | {"memory": memory[count]},
        )
        for count in counts
    ]


ENTRIES = (
    Entry(
        "fl-scale",
        "FedKL with 64, 512 and 10,000 clients, LeNet, at the same chunk: s per "
        "client, device memory, private state on the host; no peers",
        grow,
        WORK,
        Growth((2, 4), shrunken(WORK.round)),
    ),
)
