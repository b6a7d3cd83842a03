"""A client's part in a round: its role, its hardening, its training, what it gives."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from kljax.core.randomness import derive_rng
from kljax.core.types import Array
from kljax.federated.aggregation import Aggregator
from kljax.federated.cast import Cast
from kljax.federated.clients import (
    ROUND_PURPOSES,
    Batches,
    ClientState,
    LocalTraining,
)


def bind_client(
    training: LocalTraining,
    rule: Aggregator,
    *,
    cast: Cast | None,
    harden: Callable[..., Batches] | None,
    weighting: Literal["examples", "uniform"],
    encrypted: bool,
) -> Callable[..., Any]:
    """Makes what one client does in a round.

    Args:
      training: what it does between what it receives and what it sends.
      rule: how the server makes one of all uploads.
      cast: of clients that are not honest; None where all are.
      harden: see `kljax.federated.hardening.bind_hardening`; None for nothing.
      weighting: see `kljax.federated.rounds.federated_rounds`.
      encrypted: whether uploads are kept back, for an encryption to add them up.

    Returns:
      ``(shared, client, ClientState, Batches, examples [], role=None) -> (sums,
      kept)``, for `kljax.parallel.sum_clients`. ``shared`` are the random key's data of
      the round and the `ServerState`. Sums are the client's weight, 1 if it is not
      finite, its weighted (loss, accuracy) and, of a rule that streams, its part of the
      sum; of who is not finite nothing but the 1. Kept are its new state, its progress,
      and what is put side by side on the host: of an encryption weight, upload and what
      is seen of it, of a rule that gathers weight and what `rule.add` gives.
    """

    def one_client(
        shared, client, state: ClientState, batches: Batches, examples, role=None
    ):
        rng_data, server = shared
        rng = jax.random.fold_in(jax.random.wrap_key_data(rng_data), client)
        if cast is not None:
            rng_role = derive_rng(rng, ROUND_PURPOSES, "role")
            batches = cast.batches(role, rng_role, batches, hardened=False)
        if harden is not None:
            acts = True if cast is None else cast.hardens(role)
            rng_harden = derive_rng(rng, ROUND_PURPOSES, "hardening")
            batches = harden(acts, rng_harden, server, state.private, batches)
        if cast is not None:
            batches = cast.batches(role, rng_role, batches, hardened=True)
        upload, kept, progress = training.run(
            rng, server.round, server.public, server.stats, state, batches
        )
        if cast is not None:
            upload, finite = cast.upload(
                role, rng_role, server.public, server.stats, upload
            )
            progress = progress._replace(finite=progress.finite & finite)
        weight = jnp.where(weighting == "examples", examples, 1.0)
        weight = jnp.where(progress.finite, weight, 0.0)

        def counted(x: Array) -> Array:
            return jnp.where(progress.finite, weight * x, 0.0)

        measures = jax.tree.map(counted, (progress.loss, progress.accuracy))
        broken = jnp.where(progress.finite, 0, 1)
        if encrypted:
            seen = training.visible(
                rng, server.public, server.stats, state, batches, upload.delta
            )
            kept_back = weight, upload, seen
            return (weight, broken, measures), (kept, progress, kept_back)
        part = rule.add(server, upload, weight)
        if rule.gathers:
            return (weight, broken, measures), (kept, progress, (weight, part))
        # A choice and not a product: NaN times zero is NaN.
        part = jax.tree.map(lambda x: jnp.where(progress.finite, x, 0), part)
        return (weight, broken, measures, part), (kept, progress, ())

    return one_client
