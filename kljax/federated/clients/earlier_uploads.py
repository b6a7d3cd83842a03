"""A client that has sent gradients before, of which the server has a record."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from kljax.core.randomness import derive_rng
from kljax.core.types import Array, Private, Public, PyTree, Rng, Stats
from kljax.federated.clients.gradient import STEP_PURPOSES
from kljax.threat import Update


def recorded(
    step: Callable[..., Update], inputs: Array, targets: Array
) -> Callable[..., Update]:
    """Makes the function of a client that has sent t gradients before this one.

    All are of the same weights, as if the server had sent them again and again; what
    the release remembers goes from each to the next.

    Args:
      step: from `one_step`.
      inputs: [t, B, H, W, C] of the earlier gradients, oldest first.
      targets: [t, B, Kc].

    Returns:
      ``(rng, public, stats, private, inputs [B, H, W, C], targets [B, Kc]) -> Update``
      of the last gradient, with the others in `Update.earlier` as far as they can be
      read. Its randomness is that of `step` at the same rng.
    """

    def last(
        rng: Rng, public: Public, stats: Stats, private: Private, *batch: Array
    ) -> Update:
        rng_before = derive_rng(rng, STEP_PURPOSES, "earlier")

        def send(remembered: PyTree | None, index: Array | int) -> Update:
            return step(
                jax.random.fold_in(rng_before, index),
                public,
                stats,
                private,
                *jax.tree.map(lambda x: x[index], (inputs, targets)),
                remembered,
            )

        def follow(remembered: PyTree, index: Array) -> tuple[PyTree, Public]:
            update = send(remembered, index)
            return update.remembered, _readable(update)

        first = send(None, 0)
        remembered, later = jax.lax.scan(
            follow, first.remembered, jnp.arange(1, len(targets))
        )
        earlier = jax.tree.map(
            lambda one, more: jnp.concatenate([one[None], more]),
            _readable(first),
            later,
        )
        update = step(rng, public, stats, private, *batch, remembered)
        return update._replace(earlier=earlier)

    return last


def _readable(update: Update) -> Public:
    if update.visible is None:
        return update.sent
    return jax.tree.map(
        lambda x, seen: jnp.where(seen, x, jnp.nan), update.sent, update.visible
    )
