"""Trains a small decoder on the embedded corpus, for studies of trained networks.

    python experiments/train_language_model.py --steps 300

GPT-2's form (`kljax.models.gpt`), two blocks of width 256, next tokens of the first
eight pieces of verses. A tenth of the sentences, drawn by the seed, is not trained on,
and gives the perplexity that is printed. A run goes on from its last checkpoint in
``runs/language_model.npz`` (32 MB, which is why it is not in the repository), and then
ends where it would have ended. Victims of a study may be among what it was trained on.
"""

import argparse
import io
import time
from pathlib import Path

import jax
import numpy as np
import optax
from flax import nnx

from kljax import data
from kljax.core import files
from kljax.models import from_nnx, gpt
from kljax.models.losses import cross_entropy

FILE = Path("runs/language_model.npz")
LENGTH, SIZES = 8, {"width": 256, "depth": 2, "heads": 4}
BATCH, RATE, SEGMENT = 32, 1e-3, 50
SEED, HELD_OUT = 0, 0.1


def load_decoder(num_classes, *, image_shape, vocabulary=4096, lockable=(), rngs):
    """Builds the decoder with the weights of the last checkpoint, for `--model`."""
    network = gpt(
        num_classes,
        image_shape=image_shape,
        vocabulary=vocabulary,
        lockable=lockable,
        rngs=rngs,
        **SIZES,
    )
    with np.load(FILE) as saved:
        for parts, leaf in nnx.to_flat_state(nnx.state(network, nnx.Param)):
            leaf.set_value(saved[f"params {'/'.join(map(str, parts))}"])
    return network


def main() -> None:
    """Trains on, and prints the perplexity."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    steps = parser.parse_args().steps
    text = data.load("text-next-token", length=LENGTH)
    vocabulary = text.input_spec.sizes["vocabulary"]
    order = np.random.default_rng(SEED).permutation(len(text.labels))
    test, train = np.split(order, [int(HELD_OUT * len(order))])
    model = from_nnx(
        lambda rngs: gpt(
            vocabulary,
            image_shape=(LENGTH,),
            vocabulary=vocabulary,
            rngs=rngs,
            **SIZES,
        )
    )
    optimiser = optax.adam(RATE)

    def loss(params, inputs, labels):
        logits = model.apply(params, {}, inputs, train=True).logits
        return cross_entropy(logits, jax.nn.one_hot(labels, vocabulary))

    @jax.jit
    def step(params, state, inputs, labels):
        moves, state = optimiser.update(
            jax.grad(loss)(params, inputs, labels), state, params
        )
        return optax.apply_updates(params, moves), state

    params, _ = jax.jit(model.init)(jax.random.key(SEED))
    made, params, state = restore(params, optimiser.init(params))
    began = time.perf_counter()
    while made < steps:
        for _ in range(min(SEGMENT, steps - made)):
            chosen = np.random.default_rng([SEED, made]).choice(train, BATCH)
            params, state = step(
                params, state, text.inputs[chosen], text.labels[chosen]
            )
            made += 1
        save(made, params, state)
    measure = jax.jit(loss)
    losses = [
        float(measure(params, text.inputs[part], text.labels[part]))
        for part in np.array_split(test, len(test) // 256)
    ]
    print(
        f"{made} steps of {BATCH} sentences, {time.perf_counter() - began:.0f} s: "
        f"perplexity {np.exp(np.mean(losses)):.0f} on {len(test)} sentences held out, "
        f"of {vocabulary} pieces"
    )


def restore(params, state):
    """Gives steps made, parameters and the optimiser's state, of the checkpoint."""
    if not FILE.exists():
        return 0, params, state
    with np.load(FILE) as saved:
        params = {path: saved[f"params {path}"] for path in params}
        leaves, tree = jax.tree.flatten(state)
        leaves = [saved[f"state {i}"] for i in range(len(leaves))]
        return int(saved["steps"]), params, jax.tree.unflatten(tree, leaves)


def save(made, params, state):
    """Writes a checkpoint, whole or not at all."""
    buffer = io.BytesIO()
    leaves = {f"state {i}": leaf for i, leaf in enumerate(jax.tree.leaves(state))}
    named = {f"params {path}": leaf for path, leaf in params.items()}
    np.savez(buffer, steps=made, **named, **leaves)
    FILE.parent.mkdir(exist_ok=True)
    files.write_bytes(FILE, buffer.getvalue())


if __name__ == "__main__":
    main()
