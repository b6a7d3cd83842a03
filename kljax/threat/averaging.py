"""The average of several clients: all that a server sees under secure aggregation."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from kljax.core.types import PyTree
from kljax.threat.observation import Update


def average_updates(updates: Sequence[Update]) -> Update:
    """Makes one update of the average of several clients' gradients.

    A server that adds up what it cannot read (`kljax.federated.encryption`) learns the
    mean of a round's gradients, weighted by examples. Of a loss that is a mean over
    examples, that is the gradient of all their examples in one batch. So whatever
    attacks a gradient of ``sum_c B_c`` examples attacks the average: the threat model
    says ``upload="gradient"`` and that many examples. Under norm layers that take the
    statistics of a client's batch, the two differ, and an attacker that replays one
    batch is off; in eval mode they do not. The same is true of what each client does to
    its gradient before it is sent: the mean of clipped, pruned or quantised gradients
    is not what becomes of the gradient of one batch, and an attacker that replays the
    defence on one batch replays another.

    Masks of what is visible are dropped: the average is read whole. What one client
    sent before is no part of it.

    Args:
      updates: of the gradients of one step, at the same parameters.

    Returns:
      An update with the examples of all, client after client.

    Raises:
      ValueError: without updates; for changes of several local steps, whose mean is
        that of no one client; for other parameters; and for a defence that hides
        something of a client's own, which no one candidate has.
    """
    if not updates:
        raise ValueError("an average needs the update of a client at least")
    if any(update.local is not None for update in updates):
        raise ValueError(
            "the mean of changes over several local steps is that of no one client: "
            "average the gradients of one step"
        )
    if any(jax.tree.leaves(update.private) for update in updates):
        raise ValueError(
            "a defence hides something of each client's own (a private key, gates): "
            "the mean of their gradients is no gradient of one batch under one of them"
        )
    first = updates[0]
    if not all(
        _same((u.public, u.stats), (first.public, first.stats)) for u in updates
    ):
        raise ValueError(
            "the clients of an average start from the same parameters, and these are "
            "of different ones"
        )
    counts = np.array([update.targets.shape[0] for update in updates], np.float32)
    shares = counts / counts.sum()

    def mean(*leaves: jax.Array) -> jax.Array:
        total = sum(share * leaf for share, leaf in zip(shares, leaves, strict=True))
        return jnp.asarray(total, leaves[0].dtype)

    def joined(*leaves: jax.Array) -> jax.Array:
        return jnp.concatenate(leaves)

    substitutes = [update.substitute for update in updates]
    replaced = all(substitute is not None for substitute in substitutes)
    return first._replace(
        sent=jax.tree.map(mean, *(u.sent for u in updates)),
        before_release=jax.tree.map(mean, *(u.before_release for u in updates)),
        new_stats=jax.tree.map(mean, *(u.new_stats for u in updates)),
        inputs=jax.tree.map(joined, *(u.inputs for u in updates)),
        targets=joined(*(u.targets for u in updates)),
        visible=None,
        earlier=None,
        remembered=(),
        substitute=jax.tree.map(joined, *substitutes) if replaced else None,
    )


def _same(one: PyTree, other: PyTree) -> bool:
    """Tells whether two trees are alike; of data of `jax.jit`, their shapes."""
    leaves, others = jax.tree.leaves(one), jax.tree.leaves(other)
    if jax.tree.structure(one) != jax.tree.structure(other):
        return False
    if any(jnp.shape(a) != jnp.shape(b) for a, b in zip(leaves, others, strict=True)):
        return False
    if any(isinstance(leaf, jax.core.Tracer) for leaf in (*leaves, *others)):
        return True
    return all(np.array_equal(a, b) for a, b in zip(leaves, others, strict=True))
