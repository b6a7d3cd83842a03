"""Low rank: the gradient of a dense layer taken apart into two unknown factors.

The gradient of the weights and bias of ``z = x W + c`` is ``G = X^T D``: inputs X
[B, d + 1], each with a one for the bias, and derivatives D [B, m] by the outputs. Its
singular value decomposition gives the space of both, and not yet X and D themselves:
``X^T = left Q`` and ``D = Q^-1 right`` with an unknown Q [B, B].
"""

from typing import NamedTuple

import jax.numpy as jnp

from kljax.core.types import Array

# Random matrices of n x m numbers of deviation s have singular values of at most about
# s (sqrt(n) + sqrt(m)); rounding is not quite random, and this times as much is noise.
EDGE = 4.0


class Factors(NamedTuple):
    """A gradient [n, m] as a product, and what is left of it.

    Attributes:
      left: [n, B], orthonormal columns times the singular values.
      right: [B, m], orthonormal rows.
      sizes: [B], the singular values, falling.
      noise: [] deviation of an entry of what is beyond rank B; 0 where nothing is.
      rank: [] int32, singular values that are no noise; above B where the gradient is
        that of more examples.
    """

    left: Array
    right: Array
    sizes: Array
    noise: Array
    rank: Array


def split(gradient: Array, examples: int) -> Factors:
    """Takes a gradient [n, m] of B examples apart; B < min(n, m).

    To be called within ``float64(True)``. Rows and columns of zeros (dark pixels, dead
    units) count neither for the noise nor for the rank.
    """
    left, sizes, right = jnp.linalg.svd(gradient, full_matrices=False)
    rows, columns = (
        jnp.sum(jnp.any(gradient != 0, axis=axis)).astype(gradient.dtype)
        for axis in (1, 0)
    )

    def noise_beyond(rank: int) -> Array:
        free = jnp.maximum((rows - rank) * (columns - rank), 1.0)
        return jnp.sqrt(jnp.sum(sizes[rank:] ** 2) / free)

    # More examples than are said would be noise beyond B, and hardly any further down.
    faint = noise_beyond((examples + len(sizes)) // 2)
    edge = EDGE * faint * (jnp.sqrt(rows) + jnp.sqrt(columns))
    # A client computes in float32, whose rounding is larger where entries are.
    least = 4 * jnp.finfo(jnp.float32).eps * sizes[0]
    rank = jnp.sum(sizes > jnp.maximum(edge, least), dtype=jnp.int32)
    kept = sizes[:examples]
    noise = noise_beyond(examples)
    return Factors(left[:, :examples] * kept[None], right[:examples], kept, noise, rank)
