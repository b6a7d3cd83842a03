"""Runs a Flower federation, keeps the uploads of a round and audits one of them.

    python experiments/flower_app.py --out runs/flower
    python experiments/flower_app.py --out runs/noisy --defence gaussian-noise=0.01

Each process of the simulation imports JAX; where other work runs beside,
``RAY_worker_niceness=0`` keeps Ray from putting them last.

What: two clients with one digit each (LeNet at 8x8, weights U(-0.5, 0.5), one step of
SGD at rate 0.1), Flower's own simulation and FedAvg, one round. The clients know no
kljax but for the mod, where a defence is named; the server wraps its strategy. What
clients hold is written beside the uploads, to score by.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from kljax import data, flower
from kljax.models import LeNet, from_nnx

SHAPE, RATE = (8, 8, 3), 0.1


def network():
    """Makes the network of clients and server."""
    return from_nnx(lambda rngs: LeNet(10, image_shape=SHAPE, rngs=rngs))


def example(partition):
    """Gives the images [1, H, W, C] and labels [1] of a client."""
    digits = data.load("digits", shape=SHAPE)
    return digits.fetch(np.array([17 + partition]))


def record(arrays):
    """Makes what Flower sends."""
    return ArrayRecord({name: Array(np.asarray(x)) for name, x in arrays.items()})


def clients(defence):
    """Makes the app of all clients."""
    app = ClientApp(mods=[flower.defence_mod(defence, seed=0)] if defence else [])

    @app.train()
    def train(message, context):
        images, labels = map(jnp.asarray, example(context.node_config["partition-id"]))
        arrays = message.content["arrays"]
        params = {name: jnp.asarray(x.numpy()) for name, x in arrays.items()}

        def loss(params):
            logits = network().apply(params, {}, images, train=True).logits
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return jnp.mean(losses)

        grads = jax.grad(loss)(params)
        trained = {name: params[name] - RATE * grads[name] for name in params}
        metrics = MetricRecord({"num-examples": 1})
        content = RecordDict({"arrays": record(trained), "metrics": metrics})
        return Message(content=content, reply_to=message)

    return app


def server(out):
    """Makes the app of the server."""
    app = ServerApp()

    @app.main()
    def main(grid, context):
        params = network().init(jax.random.key(0))[0]
        draws = np.random.default_rng(0)
        arrays = {n: draws.uniform(-0.5, 0.5, x.shape) for n, x in params.items()}
        arrays = {n: x.astype(np.float32) for n, x in arrays.items()}
        strategy = flower.KeepUploads(FedAvg(fraction_evaluate=0.0), out, rounds=(1,))
        strategy.start(grid=grid, initial_arrays=record(arrays), num_rounds=1)

    return app


def main(out, defence, steps, starts):
    """Runs the federation and the audit of its first upload; gives that, and errors."""
    resources = {"client_resources": {"num_cpus": 1}}
    run_simulation(server(out), clients(defence), 2, backend_config=resources)
    (path, *_) = flower.kept_uploads(out).values()
    facts = {"model": "lenet", "image_size": 8, "learning_rate": RATE}
    found = flower.audit_upload(path, steps=steps, starts=starts, **facts)
    best = found.found[0]
    # Which client a node was is for the score alone.
    truths = [np.asarray(example(n)[0]) for n in range(2)]
    off = min(float(np.sqrt(np.mean((best.images - x) ** 2))) for x in truths)
    floor = min(float(np.sqrt(np.mean((x.mean() - x) ** 2))) for x in truths)
    print(
        f"{path}: {found.verdict.name}; best of {best.source}, misfit "
        f"{best.misfit.whole:.2g}; root mean square error {off:.2g}, of an image of "
        f"the true mean {floor:.2g}"
    )
    return found, off, floor


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--defence")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--starts", type=int, default=2)
    options = parser.parse_args()
    main(options.out, options.defence, options.steps, options.starts)
