"""What a client does: its gradient, apart into what may leave and what may not."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from kljax.defences import Context, Defence
from kljax.threat import Update
from kljax.typing import Array, Loss, Model, Private, Public, PyTree, Rng, Stats


class Gradient(NamedTuple):
    """The gradient of one step, before anything is released."""

    public: Public
    trainable: PyTree  # gradient of the lock weights: private
    stats: Stats  # norm statistics after the step
    loss: Array  # []


def local_gradient(
    model: Model, loss: Loss, defence: Defence, *, train: bool
) -> Callable[..., Gradient]:
    """Makes the function that computes one client's gradient.

    Args:
      model: the network.
      loss: ``(logits, targets) -> scalar``.
      defence: the client's defence; only its gates matter here.
      train: whether norm layers use the batch's statistics (and dropout is on).

    Returns:
      ``(rng, public, stats, private, images [B, H, W, C], targets [B, Kc]) ->
      Gradient``. The secret is never differentiated.
    """

    def gradient(
        rng: Rng, public: Public, stats: Stats, private: Private, images, targets
    ) -> Gradient:
        def objective(public: Public, trainable: PyTree):
            gates = defence.gates(public.defence, Private(private.secret, trainable))
            out = model.apply(
                public.model, stats, images, gates=gates, train=train, rngs=rng
            )
            return loss(out.logits, targets), out.stats

        (value, new_stats), grads = jax.value_and_grad(
            objective, argnums=(0, 1), has_aux=True
        )(public, private.trainable)
        return Gradient(*grads, new_stats, value)

    return gradient


def one_step(
    model: Model, loss: Loss, defence: Defence, *, train: bool
) -> Callable[..., Update]:
    """Makes the function that runs one client for one step and records all of it.

    Returns:
      ``(rng, public, stats, private, images, targets) -> Update``: everything that
      is true about this step, released gradient included. `kljax.threat.observe`
      decides what of it anyone else gets to see.
    """
    gradient = local_gradient(model, loss, defence, train=train)

    def step(
        rng: Rng, public: Public, stats: Stats, private: Private, images, targets
    ) -> Update:
        rng_gradient, rng_release = jax.random.split(rng)
        grads = gradient(rng_gradient, public, stats, private, images, targets)
        sent, _ = defence.release(
            rng_release,
            defence.init_state(grads.public),
            grads.public,
            Context(public, stats, images, targets),
        )
        return Update(
            public=public,
            stats=stats,
            sent=sent,
            new_stats=grads.stats,
            images=images,
            targets=targets,
            private=private,
            initial_lock_weights=private.trainable,
            lock_grads=grads.trainable,
        )

    return step
