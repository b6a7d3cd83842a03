"""Which tokens of a batch stand at which place, by the gradients of two tables.

Letters: d width, T places, V tokens of a vocabulary, U of them that are considered.

The gradient of a token's embedding is the sum, over the places where it stands, of the
derivative by what is embedded there; that of a place's is the same sum over its tokens.
Of tokens that stand at one place alone, the place's row is therefore the sum of theirs,
whatever the network makes of either. Where the table is tied to the classifier, the
classifier's gradient is added to all rows: ``sum_i p_i h_i^T`` over what the classifier
was fed, of which the tokens that are in no sentence show the span.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from kljax.core.types import Array

SMALLEST = 1e-5  # share of the largest singular value that counts, of rows in float32


class TokenPlaces(NamedTuple):
    """What is read off.

    Attributes:
      tokens: [U] those with the longest rows.
      counts: [U, T] by what the row of a token enters that of a place: near 1 where it
        stands there alone of all places, and near 0 where it does not stand. Tokens at
        several places have something between, and disturb the others by a little.
    """

    tokens: Array
    counts: Array


def find_token_places(embeddings: Array, positions: Array, count: int) -> TokenPlaces:
    """Reads tokens and places off; to be called within ``float64(True)``.

    Args:
      embeddings: [V, d] gradient of the tokens' table.
      positions: [T, d] gradient of the places' table.
      count: U.
    """
    lengths = jnp.linalg.norm(embeddings, axis=1)
    _, tokens = jax.lax.top_k(lengths, count)
    tokens = tokens.astype(jnp.int32)
    others = embeddings.at[tokens].set(0.0)
    squares, directions = jnp.linalg.eigh(others.T @ others)
    inside = (squares > SMALLEST**2 * squares[-1]) & (squares > 0)
    classifier = jnp.where(inside[None], directions, 0.0)

    def project_out(rows: Array) -> Array:
        return rows - (rows @ classifier) @ classifier.T

    rows, places = project_out(embeddings[tokens]), project_out(positions)
    counts = jnp.linalg.lstsq(rows.T, places.T, rcond=SMALLEST)[0]
    return TokenPlaces(tokens, counts)
