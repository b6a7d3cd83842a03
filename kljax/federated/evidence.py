"""What a server finds out before it aggregates, for rules that need it.

Each is an `Evidence` of `kljax.federated.aggregation`. Letters: n clients in a round, V
validation examples of one client.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kljax.core.targets import TargetSpec
from kljax.core.types import Array, Loss, Model, Private, PyTree, Rng
from kljax.defences import Defence, without_changes
from kljax.federated.aggregation import (
    Evidence,
    Gathered,
    Validation,
    mix_changes,
)
from kljax.federated.clients import Batches, LocalOptimiser, Upload, local_training
from kljax.federated.server import ServerState


def root_training(
    model: Model,
    loss: Loss,
    defence: Defence,
    optimiser: LocalOptimiser,
    batches: Callable[[int], Batches],
    **options,
) -> Evidence:
    """Makes what the server's own training on root examples gives: an `Upload`.

    It trains as a client does, from what it has sent out, and starts anew in every
    round. What the defence does to gradients is left out: the server hides nothing
    from itself.

    Args:
      model, loss, defence, optimiser: of the clients, see `kljax.local_training`.
      batches: ``round -> Batches`` of its root examples.
      options: of `kljax.local_training`.

    Raises:
      ValueError: for a defence with a part that is private to each client: the server
        has none that is trained.

    Reference: Cao et al., NDSS 2021 (FLTrust), section IV.
    """
    check_public("a training of the server's own", model, defence)
    bare = without_changes(defence)
    training = local_training(model, loss, bare, optimiser, **options)

    @jax.jit
    def train(rng: Rng, server: ServerState, given: Batches) -> Upload:
        state = training.init(server.public, Private((), ()))
        upload, _, _ = training.run(
            rng, server.round, server.public, server.stats, state, given
        )
        return upload

    def find(rng: Rng, server: ServerState, gathered: Gathered) -> Upload:
        del gathered
        return train(rng, server, batches(int(server.round)))

    return find


class HeldOut(NamedTuple):
    """Validation examples of n clients, padded to as many of each."""

    inputs: PyTree  # [n, V, H, W, C] of images in [0, 1], or others
    labels: Array  # [n, V] int32, or other targets as a dataset has them
    valid: Array  # [n, V] bool: false for what only pads a small client


def cross_validation(
    model: Model,
    loss: Loss,
    defence: Defence,
    held_out: Callable[[np.ndarray], HeldOut],
    targets: TargetSpec,
    *,
    mixed: bool = False,
) -> Evidence:
    """Makes how the network of each client does on what each client has held back.

    Networks are tried one after another, each on the examples of all clients together;
    norms use the statistics that a client has sent.

    Args:
      model, loss: of the clients.
      defence: its public part gates the networks.
      held_out: of the clients with these numbers [n].
      targets: what their labels are.
      mixed: whether changes are mixed before, see `kljax.federated.aggregation`'s
        `mix_changes`.

    Returns:
      An `Evidence` that gives a `Validation`.

    Raises:
      ValueError: for a defence with a part that is private to each client, without
        which its network is another, and for targets of which nothing is right or
        wrong.

    Reference: Ren et al., Neurocomputing 2023 (FedBoosting), fed_server.py.
    """
    check_public("a validation by others", model, defence)
    if targets.right is None:
        raise ValueError(
            f"a validation by others counts what is right, and of {targets.kind} "
            "nothing is: take another aggregator"
        )

    @jax.jit
    def tried(server: ServerState, uploads: Upload, held: HeldOut) -> Validation:
        if mixed:
            uploads = uploads._replace(delta=mix_changes(uploads.delta))

        def on_all(upload: Upload) -> Validation:
            public = jax.tree.map(jnp.add, server.public, upload.delta)
            gates = defence.gates(public.defence, Private((), ()))

            def on_one(inputs: PyTree, labels: Array, valid: Array) -> Validation:
                given = public.model, upload.stats, inputs
                logits = model.apply(*given, gates=gates, train=False).logits
                aims = targets.encode(labels)
                losses = jax.vmap(lambda x, y: loss(x[None], y[None]))(logits, aims)
                right = targets.right(logits, labels)
                count = jnp.sum(valid)
                return Validation(
                    *(jnp.sum(jnp.where(valid, x, 0)) / count for x in (losses, right))
                )

            return jax.vmap(on_one)(*held)

        return jax.lax.map(on_all, uploads)

    def find(rng: Rng, server: ServerState, gathered: Gathered) -> Validation:
        del rng
        return tried(server, gathered.uploads, held_out(gathered.clients))

    return find


def check_public(what: str, model: Model, defence: Defence) -> None:
    """Refuses a defence with a part that is private to each client.

    Args:
      what: cannot do with it.

    Raises:
      ValueError: see above.
    """

    def private() -> Private:
        rng = jax.random.key(0)
        return defence.init(rng, model.init(rng)[0])[1]

    if jax.tree.leaves(jax.eval_shape(private)):
        raise ValueError(
            f"{what} needs networks that work without what is private to a client, "
            "and the defence has a private part, such as a lock's: take another "
            "aggregator, or an arm such as 'none'"
        )
