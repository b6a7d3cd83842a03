"""A whole local training as one recorded update, for who studies what it gives away."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kljax.core.randomness import derive_rng
from kljax.core.types import Array, Loss, Model, Private, Public, PyTree, Rng, Stats
from kljax.defences import (
    SEND_ALL,
    Context,
    Defence,
    step_transform,
    without_changes,
)
from kljax.federated.clients.gradient import local_gradient, visible_of
from kljax.federated.clients.local import (
    ROUND_PURPOSES,
    Batches,
    ClientState,
    LocalOptimiser,
    Remembered,
    local_training,
    renew_private,
    targets_of,
)
from kljax.threat import LocalSteps, Update


class LocalUpdate(NamedTuple):
    """One client's whole local training, for who studies what it gives away.

    Attributes:
      init: of the `LocalTraining` that it is made of.
      run: ``(rng, round [], Public, stats, ClientState, inputs [n, H, W, C], labels
        [n]) -> Update``.
    """

    init: Callable[[Public, Private], ClientState]
    run: Callable[..., Update]


def local_update(
    model: Model,
    loss: Loss,
    defence: Defence,
    optimiser: LocalOptimiser,
    *,
    steps: int,
    batch: int,
    **options,
) -> LocalUpdate:
    """Makes the function that trains one client and records all of it.

    The n examples are cut into batches of B in order; after the last batch comes the
    first again, until T steps are made.

    Args:
      model, loss, defence, optimiser: see `local_training`.
      steps: T.
      batch: B; it divides the number of examples.
      options: of `local_training`. Under an augmentation, what was trained on is not
        what the `Update` says.

    Returns:
      The pair of functions. What of the change can be read is said of all examples
      together, at the parameters received. What was trained on in place of the inputs
      is not recorded: each step has a substitute of its own, and `Update.substitute` is
      None. The `Update` holds the private part that the client takes its first step
      with, also as the lock weights of round 0: whoever knows better replaces them.

    Raises:
      ValueError: for T or B below 1, and from ``run`` if B does not divide n.
    """
    if min(steps, batch) < 1:
        raise ValueError(f"steps={steps} and batch={batch} must be at least 1")
    renew = options.pop("renew", None)
    training = local_training(model, loss, defence, optimiser, **options)
    gradient = local_gradient(model, loss, defence, train=True)
    bare = local_training(model, loss, without_changes(defence), optimiser, **options)

    def run(
        rng: Rng,
        number: Array,
        received: Public,
        stats: Stats,
        state: ClientState,
        inputs: PyTree,
        labels: Array,
    ) -> Update:
        examples = labels.shape[0]
        if examples % batch:
            raise ValueError(
                f"batch={batch} does not divide the {examples} examples of the update"
            )
        order = np.arange(steps * batch) % examples

        def cut(values: Array) -> Array:
            return values[order].reshape(steps, batch, *values.shape[1:])

        batches = Batches(jax.tree.map(cut, inputs), cut(labels), jnp.ones(steps, bool))
        state = state._replace(private=renew_private(renew, rng, state.private))
        delta, upload, kept, _ = training.record(
            rng, number, received, stats, state, batches
        )
        changed = defence.per_example is not None
        if changed or step_transform(defence) != SEND_ALL:
            # The same draws: what a release consumes is nobody else's.
            forgetful = state._replace(release=Remembered((), ()))
            delta, *_ = bare.record(rng, number, received, stats, forgetful, batches)
        before = state.private.trainable
        kind = targets_of(
            model, received, stats, batches.inputs, options.get("targets")
        )
        targets = kind.encode(labels)
        rng_gradient, rng_visible = jax.random.split(
            derive_rng(rng, ROUND_PURPOSES, "visible")
        )
        mine = functools.partial(gradient, rng_gradient, received, stats, state.private)
        context = Context(received, stats, inputs, targets, mine, state.private)
        return Update(
            public=received,
            stats=stats,
            sent=upload.delta,
            before_release=delta,
            new_stats=upload.stats,
            inputs=inputs,
            targets=targets,
            private=state.private,
            initial_lock_weights=before,
            lock_grads=jax.tree.map(jnp.subtract, kept.private.trainable, before),
            local=LocalSteps(steps, batch),
            visible=visible_of(defence, rng_visible, upload.delta, context),
        )

    return LocalUpdate(training.init, run)
