"""The average of several clients: all that a server sees under secure aggregation."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from kljax.core.checks import is_concrete
from kljax.core.types import Array, PyTree
from kljax.threat.observation import Average, Update

# What every client of an average has a part of its own in, by field of `Update`.
OWN = ("inputs", "targets", "substitute")


def average_updates(updates: Sequence[Update]) -> Update:
    """Makes one update of the average of several clients' uploads.

    A server that adds up what it cannot read (`kljax.federated.encryption`) learns the
    mean of a round's gradients, or of its clients' changes, weighted by examples. That
    is what the threat model calls ``upload="average"``. What each client does to its
    upload before it is sent (clipping, noise, a lock's gates) it does before the mean.

    Masks of what is visible are dropped: the average is read whole. What one client
    sent before is no part of it, and neither is the upload of any one client.

    Args:
      updates: all of one step, or all of as many local steps, at the same parameters.

    Returns:
      An update with the examples of all, client after client. Its ``private`` has those
      of the clients with a leading axis [clients]; its gradients of lock weights and
      its norm statistics are means.

    Raises:
      ValueError: without updates; for other parameters, and for uploads of which some
        are gradients, or made of another number of local steps, than others.
    """
    if not updates:
        raise ValueError("an average needs the update of a client at least")
    first = updates[0]
    if any(update.local != first.local for update in updates):
        raise ValueError(
            "the clients of an average all send a gradient, or all the change of as "
            "many local steps, and these do not: "
            f"{', '.join(str(update.local or 'a gradient') for update in updates)}"
        )
    if not all(
        _same((u.public, u.stats), (first.public, first.stats)) for u in updates
    ):
        raise ValueError(
            "the clients of an average start from the same parameters, and these are "
            "of different ones"
        )
    replaced = all(update.substitute is not None for update in updates)

    def joined(name: str) -> PyTree:
        parts = [getattr(update, name) for update in updates]
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)

    counts = np.array([update.targets.shape[0] for update in updates], np.float32)
    return _average(
        jax.tree.map(
            lambda *leaves: jnp.stack(leaves),
            *(_alike(update) for update in updates),
        ),
        counts / counts.sum(),
        {name: joined(name) for name in OWN if name != "substitute" or replaced},
    )


def average_stacked(updates: Update, clients: int) -> Update:
    """Makes one update of uploads that `jax.vmap` or `jax.lax.map` made side by side.

    Args:
      updates: with a leading axis [clients], of as many examples each and from the same
        parameters.
      clients: K, 1 or more.

    Returns:
      What `average_updates` makes of them one by one.
    """

    def merged(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)

    return _average(
        _alike(updates),
        np.full(clients, 1 / clients, np.float32),
        {name: merged(getattr(updates, name)) for name in OWN},
    )


def _alike(update: Update) -> Update:
    """Leaves of an update what every client has in the same shapes."""
    nothing = dict.fromkeys((*OWN, "visible", "earlier"))
    return update._replace(**nothing, remembered=())


def _average(stacked: Update, shares: np.ndarray, own: dict[str, PyTree]) -> Update:
    """Averages what is sent, and keeps what is every client's own beside it."""

    def mean(leaf: Array) -> Array:
        return jnp.tensordot(shares, leaf, axes=1).astype(leaf.dtype)

    def first(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: leaf[0], tree)

    means = {
        name: jax.tree.map(mean, getattr(stacked, name))
        for name in ("sent", "before_release", "new_stats", "lock_grads")
    }
    same = {
        name: first(getattr(stacked, name))
        for name in ("public", "stats", "initial_lock_weights")
    }
    return stacked._replace(**means, **same, **own, average=Average(len(shares)))


def _same(one: PyTree, other: PyTree) -> bool:
    """Tells whether two trees are alike; of data of `jax.jit`, their shapes."""
    leaves, others = jax.tree.leaves(one), jax.tree.leaves(other)
    if jax.tree.structure(one) != jax.tree.structure(other):
        return False
    if any(jnp.shape(a) != jnp.shape(b) for a, b in zip(leaves, others, strict=True)):
        return False
    if not all(map(is_concrete, (*leaves, *others))):
        return True
    return all(np.array_equal(a, b) for a, b in zip(leaves, others, strict=True))
