"""Top-k sparsification, with what is not sent kept for later."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from kljax.core.checks import is_concrete
from kljax.core.types import Array, Public, Rng
from kljax.defences.defence import Context, Defence
from kljax.defences.pruning import zero_as_seen
from kljax.defences.selective import largest


def top_k(share: float | Array) -> Defence:
    """Sends, tensor by tensor, the entries largest in magnitude, and keeps the rest.

    What is not sent is remembered, per client, and added to the next gradient (error
    feedback): all that was sent and what is left add up to all gradients. Pruning
    (`magnitude_pruning`) forgets it.

    The attacker sees which entries are sent, and compares those of them that it can
    explain: of a first release all, of a later one those that were sent the time
    before, too, from which nothing was left over. In the place of the others it assumes
    what was sent, which makes no difference and tells nothing. That an entry was left
    out, and so is smaller than those sent, is not made use of. Of a step of local
    training nobody sees anything, and where noise was added to a tensor it has no
    zeros: there the attacker keeps the largest entries of its candidate's gradient, as
    of a first release. What a client's earlier local steps left over, and adds to the
    next, it does not carry along, so that its replay of several steps is not the
    client's training even at the truth; with ``@update`` there is one release.

    Args:
      share: of a tensor's entries that are sent, rounded to whole ones and at least
        one of each tensor, in (0, 1]; 1 is the identity. Of equal entries the first
        are sent.

    Raises:
      ValueError: for a share outside (0, 1].

    Reference: Lin et al., "Deep Gradient Compression" (ICLR 2018), algorithm 1, where
    the share ends at .001; without its momentum correction, clipping and warm-up.
    """
    if is_concrete(share) and not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share!r}")

    def sent_of(total: Array) -> Array:
        # At least one: or a small bias would never be sent.
        kept = largest(jnp.abs(total), jnp.maximum(share, 1 / total.size))
        return jnp.where(kept, total, jnp.zeros_like(total))

    def release(rng: Rng, left: Public, grads: Public, context: Context):
        del rng, context
        total = jax.tree.map(jnp.add, grads, left)
        sent = jax.tree.map(sent_of, total)
        return sent, jax.tree.map(jnp.subtract, total, sent)

    def simulate(
        grads: Public, sent: Public | None, earlier: Public | None, private: Any
    ) -> Public:
        del private
        if sent is None:
            return jax.tree.map(sent_of, grads)
        if earlier is None:
            as_seen = functools.partial(zero_as_seen, sent_of)
            return jax.tree.map(as_seen, grads, sent)
        return jax.tree.map(later, grads, sent, earlier)

    def later(g: Array, seen: Array, record: Array) -> Array:
        zero, before = seen == 0, record[-1]
        nothing_left = (before != 0) & ~jnp.isnan(before)
        # In place of a hidden entry, which is NaN, something that can be computed with.
        own = jnp.isnan(seen) | (~zero & nothing_left)
        return jnp.where(jnp.any(zero), jnp.where(own, g, seen), sent_of(g))

    def init_state(grads: Public) -> Public:
        return jax.tree.map(jnp.zeros_like, grads)

    return Defence(release=release, init_state=init_state, simulate=simulate)
