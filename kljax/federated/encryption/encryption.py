"""What every encryption of uploads is made of, and how a round goes through it.

A server adds up uploads of which it cannot read what is encrypted. Whoever may read
the sum hands its mean back to the server, which goes on as without encryption: it
learns the mean of a round, and of one upload what a defence leaves visible.

Letters: n clients, d entries of an upload.
"""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kljax.core.types import PyTree
from kljax.federated.clients import Upload


class Cost(NamedTuple):
    """What adding up encrypted entries took, in processor seconds of all threads."""

    upload_bytes: float = 0.0  # of the encrypted entries of one client, on the mean
    encrypt_s: float = 0.0  # of one client, on the mean
    add_s: float = 0.0  # of the server
    decrypt_s: float = 0.0  # of whoever may read the sum


class HiddenPart(NamedTuple):
    """What of a round's uploads was encrypted."""

    entries: int  # d, norm statistics included
    hidden: int  # of them, those that every client encrypted
    plain_bytes: int  # of the other entries of one upload, and of its mask
    cost: Cost

    @property
    def upload_bytes(self) -> float:
        """Counts the bytes that one client uploads, on the mean."""
        return self.plain_bytes + self.cost.upload_bytes


# (round, ids [n], shares [n] that sum to 1, values [n, d]) -> (mean [d], Cost)
AddHidden = Callable[[int, np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, Cost]]


class Encryption(NamedTuple):
    """How a server adds up what it cannot read.

    Attributes:
      name: for errors.
      start: draws the keys of all clients, and gives an `AddHidden`. Keys live in it,
        in memory alone: nothing that they encrypt outlives a round, so whoever goes on
        with a run draws new ones.
    """

    name: str
    start: Callable[[], AddHidden]


LEAST = 2  # clients: the mean of one is its upload


def check_encryption(encryption: Encryption, rule: Any) -> None:
    """Refuses an encryption that a server's rule, or its processes, cannot work with.

    Args:
      encryption: any.
      rule: an `Aggregator`.

    Raises:
      ValueError: for a rule that needs more than a weighted sum, which every gathering
        one does; and for several processes, each of which would have keys of its own.
    """
    if rule.gathers or not rule.weighted_sum:
        raise ValueError(
            f"encryption {encryption.name!r} lets a server add uploads up and read "
            f"none, and {rule.name} looks at each of them: take the aggregator 'mean'"
        )
    if jax.process_count() > 1:
        raise ValueError(
            f"encryption {encryption.name!r} needs one process, and there are "
            f"{jax.process_count()} (jax.distributed)"
        )


def mean_of_hidden(
    add: AddHidden,
    number: int,
    ids: np.ndarray,
    weights: np.ndarray,
    uploads: Upload,
    visible: PyTree | None,
) -> tuple[Upload, HiddenPart]:
    """Makes the weighted mean of uploads of which a server reads a part.

    Norm statistics are encrypted whatever is visible of the rest. All clients encrypt
    the same entries, those that one of them hides: only entries at the same place in a
    ciphertext can be added up. Each announces its mask in the clear before. So a
    server reads less of an upload than its own mask leaves visible, never more.

    Args:
      add: of the encryption.
      number: of the round.
      ids: [n] whole numbers that name the clients.
      weights: [n] > 0.
      uploads: [n, ...] of host arrays, all finite.
      visible: like their delta, of bool; None where nothing is.

    Returns:
      The mean, in float32 or what is wider, and what was encrypted.
    """
    leaves, tree = jax.tree.flatten(uploads)
    rows = [np.asarray(x).reshape(len(x), -1) for x in leaves]
    values = np.concatenate([x.astype(np.float64) for x in rows], axis=1)
    shares = np.asarray(weights, np.float64) / np.sum(weights, dtype=np.float64)
    hidden, mask_bytes = _hidden_by_anyone(uploads, visible)
    mean = np.empty(values.shape[1])
    found, cost = add(number, ids, shares, values[:, hidden])
    mean[hidden], mean[~hidden] = found, shares @ values[:, ~hidden]
    sizes = np.concatenate([np.full(x.shape[1], x.itemsize) for x in rows])
    parts = np.split(mean, np.cumsum([x.shape[1] for x in rows])[:-1])
    shaped = [
        part.reshape(x.shape[1:]).astype(jnp.promote_types(x.dtype, np.float32))
        for part, x in zip(parts, leaves, strict=True)
    ]
    plain = int(np.sum(sizes[~hidden])) + mask_bytes
    part = HiddenPart(mean.size, int(np.sum(hidden)), plain, cost)
    return jax.tree.unflatten(tree, shaped), part


def _hidden_by_anyone(
    uploads: Upload, visible: PyTree | None
) -> tuple[np.ndarray, int]:
    """Finds the entries [d] that are encrypted, and the bytes of one client's mask."""
    if visible is None:
        entries = sum(x[0].size for x in jax.tree.leaves(uploads))
        return np.ones(entries, bool), 0
    of_delta = [~np.all(x, axis=0).ravel() for x in jax.tree.leaves(visible)]
    of_stats = [np.ones(x[0].size, bool) for x in jax.tree.leaves(uploads.stats)]
    mask_bytes = -(-sum(x.size for x in of_delta) // 8)
    # In the order of the leaves of an upload: its delta comes first.
    return np.concatenate([*of_delta, *of_stats]), mask_bytes


class Watch:
    """Adds up processor seconds by what they are spent on."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    def timed(self, what: str, call: Callable[..., Any], *arguments: Any) -> Any:
        """Calls something, and counts its time under a name."""
        began = time.process_time()
        result = call(*arguments)
        spent = time.process_time() - began
        self.seconds[what] = self.seconds.get(what, 0.0) + spent
        return result
