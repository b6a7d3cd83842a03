"""Ensembles: one reconstruction made of those of all restarts.

Letters: R restarts, B rows of an upload, D entries of a row, k columns of a table.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kljax.attacks.attack import Candidate, Pool
from kljax.core.tables import TableColumn
from kljax.core.types import Array

OTHER_LABEL = 1e3  # cost of pairing two rows of other labels; D is below that


def median_of_rows(columns: Sequence[TableColumn]) -> Pool:
    """Makes the pool that takes the median of the restarts' rows, entry by entry.

    Rows of each restart are paired with those of the one of lowest loss (`pair_rows`).
    A restart whose loss is not finite has no say. Reported are ``cell_entropy`` and
    ``confidence`` [B, k], see `kljax.attacks.presets.tableak`.
    """

    def pool(candidates: Candidate, losses: Array, best: Array):
        reference = jax.tree.map(lambda leaf: leaf[best], candidates)
        order = jax.vmap(
            lambda inputs, targets: pair_rows(
                inputs, targets, reference.inputs, reference.targets
            )
        )(candidates.inputs, candidates.targets)
        paired = jnp.take_along_axis(candidates.inputs, order[:, :, None], axis=1)
        # A restart that broke has no say, unless all have.
        sound = jnp.isfinite(losses)[:, None, None] | ~jnp.any(jnp.isfinite(losses))
        kept = jnp.where(sound, paired, jnp.nan)
        pooled = jnp.nanmedian(kept, axis=0)
        entropies, confidence = [], []
        for column in columns:
            own = pooled[:, np.array(column.entries)]
            if column.is_discrete:
                entropies.append(_entropy(own))
                confidence.append(1 - entropies[-1])
            else:
                spread = jnp.nanstd(kept[..., column.entries[0]], axis=0)
                confidence.append(-spread)
        entropy = jnp.mean(jnp.stack(entropies)) if entropies else jnp.nan
        return (
            reference._replace(inputs=pooled),
            {"cell_entropy": jnp.asarray(entropy)},
            {"confidence": jnp.stack(confidence, axis=1)},
        )

    return pool


def pair_rows(
    rows: Array, targets: Array, reference: Array, of_reference: Array
) -> Array:
    """Gives the order [B] of rows [B, D] that fits a reference [B, D] best.

    Rows of one label are paired among themselves, by the least sum of squared
    distances.
    """
    distances = jnp.sum((reference[:, None] - rows[None]) ** 2, axis=-1)
    labels, others = jnp.argmax(of_reference, axis=-1), jnp.argmax(targets, axis=-1)
    costs = distances + OTHER_LABEL * (labels[:, None] != others[None])
    places, order = optax.assignment.hungarian_algorithm(jnp.nan_to_num(costs))
    return jnp.zeros(len(rows), order.dtype).at[places].set(order)


def _entropy(shares: Array) -> Array:
    """Computes the entropy [B] of pooled categories [B, c], over that of a uniform."""
    shares = jnp.maximum(shares, 0) + 1e-7  # a median of shares need not sum to 1
    shares = shares / jnp.sum(shares, axis=-1, keepdims=True)
    entropy = -jnp.sum(shares * jnp.log(shares), axis=-1)
    return entropy / np.log(shares.shape[-1])
