"""Re-fitting: gates and norm statistics made again from public examples alone."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kljax.core.targets import TargetSpec
from kljax.core.types import Array, Gates, Loss, Model, Params, PyTree, Rng, Stats
from kljax.defences.defence import inserted_modules
from kljax.federated.evaluation.correctness import Examples, checked
from kljax.models.losses import cross_entropy

# Fixed beforehand and the same for every arm, never chosen by an accuracy: a better
# outsider may exist, so what a refit reaches is a lower bound.
REFIT_STEPS, REFIT_STEP_SIZE, REFIT_BATCH = 300, 0.05, 100


class Refitted(NamedTuple):
    """What an outsider has found."""

    gates: Gates
    stats: Stats


def refit(
    model: Model,
    params: Params,
    stats: Stats,
    start_gates: Gates,
    images: Array,
    labels: Array,
    *,
    rng: Rng,
    loss: Loss = cross_entropy,
    targets: TargetSpec | None = None,
    steps: int = REFIT_STEPS,
    step_size: float = REFIT_STEP_SIZE,
) -> Refitted:
    """Fits gates and norm statistics to N labelled examples; the weights stay.

    Adam moves scale and shift of every site, without constraint, by the loss on
    minibatches of min(N, 100); its step size falls to zero along a cosine. An epoch
    shuffles the examples and cuts them into whole minibatches; what is left over is
    dropped for that epoch. Norm layers use the statistics of the minibatch. With the
    last gates, the running statistics become the mean over one epoch of the
    minibatches' statistics (PreciseBN): nothing of the statistics before is left,
    whatever the momentum. A network without norm statistics skips this.

    Nothing is chosen: number of steps and step size are fixed beforehand, and the last
    gates are the result.

    Args:
      model, params, stats: the public model.
      start_gates: where to start, one gate per site.
      images: [N, H, W, C] in [0, 1].
      labels: [N] integers in [0, Kc).
      rng: consumed by shuffling and by dropout.
      loss: of the client's training.
      targets: what the labels are; None for classes, one per logit.
      steps: of Adam.
      step_size: Adam's first, in units of the gates.

    Raises:
      ValueError: for gates without a site, fewer than one step, and examples as in
        `accuracy`.

    Reference: Wu & Johnson, "Rethinking 'Batch' in BatchNorm" (2021), for the
    statistics.
    """
    if not start_gates:
        raise ValueError("start_gates names no site: there is nothing to fit")
    if steps < 1:
        raise ValueError(f"steps must be >= 1, got {steps!r}")
    images, labels = checked(Examples(images, labels), "refit", targets)
    # Planned on the host: a sort takes longer to compile than to do.
    generator = np.random.default_rng(np.asarray(jax.random.key_data(rng)))
    per_epoch = max(1, len(labels) // REFIT_BATCH)
    plan = [_minibatches(generator, len(labels), n) for n in (steps, per_epoch)]
    encode = None if targets is None else targets.encode
    fit = _refit(
        model,
        loss,
        encode,
        step_size,
        params,
        stats,
        start_gates,
        Examples(images, labels),
        plan,
        rng,
    )
    return Refitted(*fit)


@functools.partial(jax.jit, static_argnames=("model", "loss", "encode"))
def _refit(model, loss, encode, step_size, params, stats, gates, examples, plan, rng):
    fit_rows, stats_rows = plan
    rngs = jax.random.split(rng, len(fit_rows) + len(stats_rows))
    # What a defence inserts is a part of the network, and stays as it is.
    modules = inserted_modules(gates)
    gates = {name: one for name, one in gates.items() if name not in modules}
    schedule = optax.cosine_decay_schedule(step_size, len(fit_rows))
    optimiser = optax.adam(schedule)

    def run(gates, stats, rows, rng):
        images = jax.tree.map(lambda column: column[rows], examples.inputs)
        gates = {**gates, **modules}
        return model.apply(params, stats, images, gates=gates, train=True, rngs=rng)

    def step(state, now):
        gates, moments = state
        rows, rng = now

        def objective(gates):
            logits = run(gates, stats, rows, rng).logits
            labels = examples.labels[rows]
            if encode is None:
                return loss(logits, jax.nn.one_hot(labels, logits.shape[-1]))
            return loss(logits, encode(labels))

        updates, moments = optimiser.update(jax.grad(objective)(gates), moments)
        return (optax.apply_updates(gates, updates), moments), None

    start = gates, optimiser.init(gates)
    now = fit_rows, rngs[: len(fit_rows)]
    (gates, _), _ = jax.lax.scan(step, start, now)
    if not jax.tree.leaves(stats):
        return gates | modules, stats

    def statistics(now):
        return _of_minibatch(lambda stats: run(gates, stats, *now).stats, stats)

    found = jax.lax.map(statistics, (stats_rows, rngs[len(fit_rows) :]))
    return gates | modules, jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), found)


def _of_minibatch(update: Callable[[Stats], Stats], stats: Stats) -> Stats:
    """Solves ``update(old) = m old + (1 - m) new`` for new; m is the norm's own.

    In train mode the pass does not depend on `old`, so two values of it tell m.
    """

    def solve(old, at_zero, at_one):
        moved = 1 - (at_one - at_zero)  # 1 - m; zero for what is never updated
        solved = at_zero / jnp.where(moved > 0, moved, 1)
        return jnp.where(moved > 0, solved, old)

    zero, one = (update(filled(stats, value)) for value in (0.0, 1.0))
    return jax.tree.map(solve, stats, zero, one)


def _minibatches(generator: np.random.Generator, count: int, steps: int) -> np.ndarray:
    """Plans which of `count` examples each step sees [steps, B]."""
    size = min(count, REFIT_BATCH)
    per_epoch = count // size
    epochs = [
        generator.permutation(count)[: per_epoch * size]
        for _ in range(-(-steps // per_epoch))
    ]
    return np.concatenate(epochs).astype(np.int32).reshape(-1, size)[:steps]


def filled(tree: PyTree, value: float) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.full_like(leaf, value), tree)
