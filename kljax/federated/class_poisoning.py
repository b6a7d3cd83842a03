"""CGI: a client that poisons one class, and reads it off the next global network.

Wei et al., "Client-side Gradient Inversion Against Federated Learning from Poisoning"
(arXiv 2309.07415, 2023), say what it does: a client sees global networks and nothing
else. It sends a network that has a high loss on one class; what honest clients then
send is mostly the gradient of their examples of that class; what the next network has
moved by, less its own part, is inverted. Their formulas are not published in a form
that we could read: the design here is kljax's own.

1. The attacker trains on its own examples, those of the class relabelled (`relabelled`;
   it is bounded, as the ascent of a cross-entropy is not).
2. It scales what it has learned so that the mean becomes its own network (`scaled`),
   and, to pass a rule of aggregation, mixes it with what honest clients send
   (`largest_share`).
3. It takes its own part out of the next change (`others_mean`), and inverts that.

Letters: N clients in the mean, its own upload among them.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from kljax.core.types import Array, PyTree
from kljax.federated.aggregation.selection import krum_scores
from kljax.federated.clients import Batches

_scores = jax.jit(krum_scores, static_argnums=1)
HALVINGS = 12  # of [0, 1], in which the share of the poison is looked for


def relabelled(batches: Batches, target: int, num_classes: int) -> Batches:
    """Gives examples of the class `target` the label of the next class."""
    other = (target + 1) % num_classes
    labels = jnp.where(batches.labels == target, other, batches.labels)
    return batches._replace(labels=labels)


def scaled(change: PyTree, clients: int, benign_sum: PyTree | None = None) -> PyTree:
    """Makes the upload that gives the mean of N clients this very change.

    ``N change - sum of what the others send``.

    Args:
      change: of the attacker's own training.
      clients: N.
      benign_sum: of the N - 1 others, as far as the attacker knows it; None for 0,
        which leaves their part in the mean.
    """
    upload = jax.tree.map(lambda x: clients * x, change)
    if benign_sum is None:
        return upload
    return jax.tree.map(jnp.subtract, upload, benign_sum)


def mixed(benign: PyTree, poison: PyTree, share: float) -> PyTree:
    """Mixes two uploads: ``(1 - share) benign + share poison``."""
    return jax.tree.map(lambda b, p: (1 - share) * b + share * p, benign, poison)


def largest_share(
    benign: PyTree, poison: PyTree, passes: Callable[[PyTree], bool]
) -> float:
    """Finds the largest share of the poison with which a mixture still passes.

    By bisection, which takes it that whatever has less of the poison passes, too.

    Args:
      benign: what an honest client would send.
      poison: what the attacker wants to send.
      passes: tells whether an upload does.

    Returns:
      The share, in [0, 1], to `HALVINGS` bits; 0 where not even `benign` passes.
    """
    if passes(poison):
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        passed = passes(mixed(benign, poison, middle))
        low, high = (middle, high) if passed else (low, middle)
    return low


def others_mean(move: PyTree, own: PyTree, clients: int) -> PyTree:
    """Takes the attacker's own part out of what a mean of N clients has moved by.

    Args:
      move: the next network minus the one before.
      own: what the attacker has sent.
      clients: N, 2 or more.

    Returns:
      The mean of the N - 1 others' changes, ``(N move - own) / (N - 1)``.

    Raises:
      ValueError: for fewer than two clients.
    """
    if clients < 2:
        raise ValueError(f"a mean of clients={clients} has no others in it")
    return jax.tree.map(lambda m, u: (clients * m - u) / (clients - 1), move, own)


def seen_by_krum(uploads: PyTree, own: int, attackers: int = 1) -> bool:
    """Tells whether Krum leaves an upload out.

    Args:
      uploads: of all clients, with a leading axis [N].
      own: number of the upload.
      attackers: F of `kljax.federated.aggregation.krum`.
    """
    return int(jnp.argmin(_scores(uploads, attackers))) != own


@functools.partial(jax.jit, static_argnums=1)
def share_outside(uploads: PyTree, own: int) -> Array:
    """Computes in which share [] of its coordinates an upload is beyond all others.

    There a trimmed mean leaves it out, and a median gives it no more weight than that
    of a vote. Of N uploads that are drawn alike 2 / N is expected. Coordinates in which
    all are equal are left out.

    Args:
      uploads: of all clients, with a leading axis [N].
      own: number of the upload.
    """
    beyond, count = jnp.zeros(()), jnp.zeros(())
    for leaf in jax.tree.leaves(uploads):
        others = jnp.delete(leaf, own, axis=0)
        low, high = jnp.min(others, axis=0), jnp.max(others, axis=0)
        beyond += jnp.sum((leaf[own] < low) | (leaf[own] > high))
        count += jnp.sum((low < high) | (leaf[own] != low))
    return beyond / jnp.maximum(count, 1)


def seen_by_order(uploads: PyTree, own: int) -> bool:
    """Tells whether an upload is beyond all others in too many of its coordinates.

    That is how a server with a median, or a trimmed mean, would find an attacker. Too
    many are more than half way from 2 / N, the share of an upload that is like the
    others, to all. Of two uploads each is beyond the other everywhere, and neither is
    seen.

    Args:
      uploads: of all clients, with a leading axis [N].
      own: number of the upload.

    Reference: our own rule.
    """
    clients = len(jax.tree.leaves(uploads)[0])
    return bool(share_outside(uploads, own) > (2 / clients + 1) / 2)
