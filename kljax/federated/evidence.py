"""What a server finds out before it aggregates, for rules that need it.

Each is an `Evidence` of `kljax.federated.aggregation`. Letters: n clients in a round, V
validation examples of one client.
"""

from collections.abc import Callable

import jax

from kljax.core.types import Loss, Model, Private, Rng
from kljax.defences import Defence, without_changes
from kljax.federated.aggregation import Evidence, Gathered
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
