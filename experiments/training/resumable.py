"""The public part of a dataset, and a training that goes on where it stopped."""

import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp

from kljax.data.draws import shuffled

SHARE = 0.5  # of the examples is public
HELD_OUT = 0.1  # of those is not trained on
SEGMENT = 500  # steps between two checkpoints


def split(examples: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws the public part: [n] bool, and its indices to train and to test on."""
    order = shuffled(examples, seed, "generator")[: int(SHARE * examples)]
    held_out = int(HELD_OUT * len(order))
    public = np.zeros(examples, bool)
    public[order] = True
    return public, order[held_out:], order[:held_out]


def train_resumably(
    init,
    loss,
    examples: tuple,
    folder: Path,
    *,
    steps: int,
    seed: int,
    rate: float,
    batch: int,
    until: int | None = None,
):
    """Trains by Adam from the last checkpoint in `folder`, or from the start.

    Args:
      init: ``rng -> params``.
      loss: ``(params, rng, *rows of the examples) -> []``.
      examples: arrays [n, ...].
      folder: of the checkpoints.
      steps: of the training.
      seed: of it.
      rate: first learning rate; it falls by a cosine.
      batch: examples in a step.
      until: a step to end at before the last, as an interruption does.

    Returns:
      The parameters.
    """
    optimiser = optax.adam(optax.cosine_decay_schedule(rate, steps))
    examples = tuple(jnp.asarray(each) for each in examples)
    rng = jax.random.key(seed)
    segment = min(SEGMENT, steps)

    def step(carry, number):
        params, state = carry
        rng_rows, rng_noise = jax.random.split(jax.random.fold_in(rng, number))
        rows = jax.random.randint(rng_rows, (batch,), 0, len(examples[0]))
        of_rows = (each[rows] for each in examples)
        value, grads = jax.value_and_grad(loss)(params, rng_noise, *of_rows)
        moves, state = optimiser.update(grads, state)
        return (optax.apply_updates(params, moves), state), value

    @jax.jit
    def run(carry, first):
        return jax.lax.scan(step, carry, first + jnp.arange(segment))

    params = jax.jit(init)(jax.random.fold_in(rng, steps))
    carry = (params, optimiser.init(params))
    with ocp.CheckpointManager(
        folder.resolve(), options=ocp.CheckpointManagerOptions(max_to_keep=1)
    ) as manager:
        done = manager.latest_step() or 0
        if done:
            kept = manager.restore(done, args=ocp.args.StandardRestore(carry))
            carry = jax.tree.map(jnp.asarray, kept)
        start = time.perf_counter()
        while done < (until or steps):
            carry, values = run(carry, done)
            done += segment
            manager.save(done, args=ocp.args.StandardSave(carry))
            manager.wait_until_finished()
            seconds = time.perf_counter() - start
            print(f"step {done}: {values.mean():.4g}, {seconds:.0f} s", flush=True)
    return carry[0]
