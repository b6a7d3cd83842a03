"""How long each rule of aggregation takes for many uploads of one network.

    python experiments/aggregation_speed.py [--rules krum=100 ...] [--uploads 1000]
        [--rounds 5] [--model lenet]

Uploads are drawn: a change that all clients have in common, and as much again of each
client's own; a tenth of them is ten times as long (attackers that boost). They lie on
the host, as after the clients of a round. Timed is what `federated_rounds` does with
them: the compiled rule, with the way to the device and back. A streaming rule adds
uploads up one after another, as clients are done; here that is one loop. What a rule
needs besides (the server's own training of FLTrust, the n^2 validations of FedBoosting)
is given, and not timed.

Columns: seconds by the clock and processor seconds of all threads, median [lowest,
highest] over rounds; seconds of the first call, which compiles.
Results: experiments/speed/aggregation.md.
"""

import argparse
import os
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from tabulate import tabulate

from kljax.core.types import Public
from kljax.federated.aggregation import Validation, make_aggregator
from kljax.federated.clients import Upload
from kljax.federated.server import ServerState
from kljax.models import NETWORKS, from_nnx

SHAPE = 32, 32, 3
HEAD = ("rule", "s by the clock", "processor s", "first s")


def rules(count):
    """Names every rule, made for a tenth of attackers."""
    tenth = max(1, count // 10)
    yield from ("mean", "norm-bounding=1", "norm-bounding=1,0.01", "median")
    yield from (f"trimmed-mean={tenth}", "geometric-median", f"krum={tenth}")
    yield from (f"multi-krum={tenth}", f"bulyan={tenth}", "bulyan=1")
    yield from (f"foolsgold={count}", "fltrust", "fedboosting", "denoised-mean=0.01")


def drawn(model, count):
    """Draws uploads [n], and a server that has sent zeros."""
    params, stats = jax.device_get(model.init(jax.random.key(0)))
    generator = np.random.default_rng(0)
    lengths = np.where(np.arange(count) % 10 == 3, 10, 1).astype(np.float32)

    def draw(leaf):
        common = generator.standard_normal(leaf.shape, np.float32)
        own = generator.standard_normal((count, *leaf.shape), np.float32)
        scale = 0.01 * lengths.reshape(count, *[1] * leaf.ndim)
        return scale * (common + own)

    uploads = Upload(Public(jax.tree.map(draw, params)), jax.tree.map(draw, stats))
    nothing = jax.tree.map(np.zeros_like, (Public(params), stats))
    return uploads, ServerState(*nothing, (), np.int32(0))


def work_of(rule, uploads, server, weights):
    """Makes the function that aggregates once."""
    server = server._replace(aggregator=rule.init(server.public, server.stats))
    one = jax.tree.map(lambda x: x[0], uploads)
    count = len(weights)
    measures = np.ones((count, count), np.float32)
    known = {
        "loss": weights,
        "validation": Validation(measures, measures),
        "rng": jax.random.key(1),
        "clients": np.arange(count, dtype=np.int32),
        "root": one,
    }
    needs = {need: known[need] for need in rule.needs}

    @jax.jit
    def aggregate(server, uploads, weights, needs):
        if rule.gathers:
            return rule.finish(server, uploads, weights, **needs)

        def add(total, client):
            part = rule.add(server, *client)
            return jax.tree.map(jnp.add, total, part), None

        start = jax.tree.map(jnp.zeros_like, rule.add(server, one, weights[0]))
        total, _ = jax.lax.scan(add, start, (uploads, weights))
        return rule.finish(server, total, jnp.sum(weights), **needs)

    return lambda: jax.device_get(aggregate(server, uploads, weights, needs))


def timed(work):
    """Runs once; gives seconds by the clock, and of the processors."""
    began, spent = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began, time.process_time() - spent


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rules", nargs="+")
    parser.add_argument("--uploads", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="lenet", choices=sorted(NETWORKS))
    given = parser.parse_args()
    network = NETWORKS[given.model]
    model = from_nnx(lambda rngs: network.factory(10, image_shape=SHAPE, rngs=rngs))
    uploads, server = drawn(model, given.uploads)
    weights = np.arange(1, given.uploads + 1, dtype=np.float32)
    lines = []
    for name in given.rules or rules(given.uploads):
        work = work_of(make_aggregator(name), uploads, server, weights)
        first, _ = timed(work)
        columns = zip(*(timed(work) for _ in range(given.rounds)), strict=True)
        cells = [
            f"{statistics.median(x):.2f} [{min(x):.2f}, {max(x):.2f}]" for x in columns
        ]
        lines.append([f"`{name}`", *cells, f"{first:.1f}"])
    print(tabulate(lines, HEAD, tablefmt="github", disable_numparse=True))
    size = sum(x[0].size for x in jax.tree.leaves(uploads))
    print(
        f"\n{given.uploads} uploads of {size} numbers; {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f}"
    )


if __name__ == "__main__":
    main()
