"""What do encrypted rounds cost, and what do they change?

    pip install "kljax[he]" && python experiments/encryption.py [--rounds 20] [--seed 0]
        [--networks dense lenet resnet20] [--shares 0 0.1 0.5 1] [--repeats 5]

Table 1, a round of three clients, each upload of the size of a network for images of
32 x 32 x 3 and ten classes: random numbers, N(0, .01^2). Of its weights a share is
encrypted, the same random entries by all clients; norm statistics always are. Bytes are
what one client uploads: the encrypted numbers, four for each number in the clear, and a
mask of bits where only a part is encrypted; `times` is that over the upload in the
clear. Seconds are the processor's, of all threads, medians of --repeats: encrypt of one
client, add of the server for three, decrypt of one who may read the mean. `error` is
the largest difference to the weighted mean in float64, over all entries.

Table 2, trainings of the dense network on digits of 16 x 16 pixels, three clients with
a third of the examples each, the same seed and batches with and without encryption:
accuracy on test images after --rounds; the largest difference of a parameter, to the
plain training, after one round and at the end; the share of the entries that clients
encrypted in the last round (what one of the three hides, all encrypt), with its bytes;
seconds of one client.

Results: experiments/encryption.md.
"""

import argparse
import os
import statistics
import time

import jax
import numpy as np
from tabulate import tabulate

from kljax import TrainConfig
from kljax.core.types import Public
from kljax.federated.clients import Upload
from kljax.federated.encryption import make_encryption, mean_of_hidden
from kljax.models import from_nnx
from kljax.models.catalogue import NETWORKS
from kljax.parallel import Layout
from kljax.studies.builder import run_setup
from kljax.studies.measuring import measure, measuring_of

SHAPE, CLASSES, CLIENTS = (32, 32, 3), 10, 3
SCHEMES = ("ckks", "pairwise-masks")
COSTS = ["network", "entries", "scheme", "share", "encrypted", "upload", "times"]
COSTS += ["encrypt s", "add s", "decrypt s", "error"]
PLAIN = ("none", "none")
TRAININGS = (
    PLAIN,
    *((scheme, "none") for scheme in SCHEMES),
    *(
        (scheme, f"selective-{score}={share}")
        for scheme in SCHEMES
        for score, share in (("magnitude", 0.1), ("magnitude", 0.5), ("random", 0.1))
    ),
)
RUNS = ["scheme", "arm", "accuracy", "after 1 round", "at the end"]
RUNS += ["encrypted", "upload", "encrypt s"]


def main():
    """Prints both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    networks = ["dense", "lenet", "resnet20"]
    parser.add_argument("--networks", nargs="+", default=networks, choices=NETWORKS)
    parser.add_argument("--shares", nargs="+", type=float, default=[0, 0.1, 0.5, 1])
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    print(f"{os.cpu_count()} cores\n")
    lines = [
        cost(network, scheme, share, given)
        for network in given.networks
        for scheme in SCHEMES
        for share in given.shares
    ]
    print(tabulate(lines, COSTS, tablefmt="github", disable_numparse=True))
    trained = {job: training(*job, given) for job in TRAININGS}
    lines = [line(job, made, trained[PLAIN]) for job, made in trained.items()]
    print()
    print(tabulate(lines, RUNS, tablefmt="github", disable_numparse=True))
    print(f"\n{time.process_time():.0f} processor seconds")


def cost(network: str, scheme: str, share: float, given) -> list[str]:
    """Measures one round of uploads of a network's size."""
    draws = np.random.default_rng(given.seed)
    uploads = uploads_of(network, draws)
    visible = None
    if share < 1:
        visible = jax.tree.map(
            lambda x: np.broadcast_to(draws.random(x.shape[1:]) >= share, x.shape),
            uploads.delta,
        )
    weights = np.arange(1.0, CLIENTS + 1)
    add = make_encryption(scheme).start()
    found = []
    for number in range(given.repeats + 1):
        mean, part = mean_of_hidden(
            add, number, np.arange(CLIENTS), weights, uploads, visible
        )
        found.append(part.cost)
    del found[0]  # it compiles

    def off(mean: np.ndarray, all_of_them: np.ndarray) -> float:
        exact = np.tensordot(weights / weights.sum(), all_of_them.astype(float), 1)
        return np.max(np.abs(mean - exact), initial=0.0)

    error = max(jax.tree.leaves(jax.tree.map(off, mean, uploads)))
    plain = sum(x[0].nbytes for x in jax.tree.leaves(uploads))
    return [
        network,
        f"{part.entries:,}",
        scheme,
        f"{share:g}",
        f"{part.hidden:,}",
        written_bytes(part.upload_bytes),
        f"{part.upload_bytes / plain:.2f}",
        *(
            f"{statistics.median(getattr(one, name) for one in found):.4f}"
            for name in ("encrypt_s", "add_s", "decrypt_s")
        ),
        f"{error:.1e}",
    ]


def uploads_of(network: str, draws: np.random.Generator) -> Upload:
    """Draws what three clients upload of a network [3, ...]."""
    model = from_nnx(
        lambda rngs: NETWORKS[network].factory(CLASSES, image_shape=SHAPE, rngs=rngs)
    )
    params, stats = jax.eval_shape(model.init, jax.random.key(0))

    def drawn(x) -> np.ndarray:
        return draws.normal(0, 0.01, (CLIENTS, *x.shape)).astype(np.float32)

    return Upload(Public(jax.tree.map(drawn, params)), jax.tree.map(drawn, stats))


def training(scheme: str, arm: str, given) -> tuple:
    """Trains; gives the parameters after each round, accuracy and the last round."""
    config = TrainConfig(
        model="dense",
        data="digits",
        image_size=16,
        arms=(arm,),
        clients=CLIENTS,
        batch=32,
        learning_rate=0.05,
        rounds=given.rounds,
        public_examples=0,
        encryption=scheme,
        seed=given.seed,
        layout=Layout("loop"),
    )
    setup, keys = run_setup.build_run_setup(config), run_setup.random_keys(config)
    built, params = run_setup.arm_rounds(setup, arm), []
    server, clients = run_setup.start(setup, built.rounds)
    with jax.default_matmul_precision(config.precision):
        for number in range(config.rounds):
            server, info = built.rounds.run_round(
                keys.rounds,
                server,
                clients,
                run_setup.cohort_of(config, number),
                run_setup.batches_of(setup, number),
            )
            params.append(jax.device_get(server.public))
        found = measure(measuring_of(setup, arm, built), server, clients)
    return params, np.mean(found.accuracy), info.hidden


def line(job: tuple[str, str], made: tuple, plain: tuple) -> list[str]:
    """Writes a line of the second table."""
    (params, accuracy, part), (plain_params, *_) = made, plain

    def apart(number: int) -> str:
        both = jax.tree.map(
            lambda a, b: np.max(np.abs(a - b)), params[number], plain_params[number]
        )
        return f"{max(jax.tree.leaves(both)):.1e}"

    told = ["-"] * 3
    if part is not None:
        told = [
            f"{part.hidden / part.entries:.1%}",
            written_bytes(part.upload_bytes),
            f"{part.cost.encrypt_s:.4f}",
        ]
    differences = ["-", "-"] if part is None else [apart(0), apart(-1)]
    return [*job, f"{100 * accuracy:.1f} %", *differences, *told]


def written_bytes(count: float) -> str:
    """Writes a number of bytes in kilobytes of a thousand."""
    return f"{count / 1000:,.1f} kB"


if __name__ == "__main__":
    main()
