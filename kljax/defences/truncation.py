"""SVDefense: the gradient of each layer, of as low a rank as its energy allows."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kljax.core.checks import is_concrete
from kljax.core.decompositions import one_at_a_time
from kljax.core.types import Array, Public, Rng
from kljax.defences.context import Context
from kljax.defences.defence import Defence, widened


class Factors(NamedTuple):
    """Singular values [k] of a matrix [m, n], from the largest, and their vectors."""

    left: Array  # [m, k], orthonormal columns
    sizes: Array  # [k]
    right: Array  # [k, n], orthonormal rows


def svd_truncation(energy: float | Array) -> Defence:
    """Sends of each matrix the fewest singular values that have enough of its energy.

    A tensor is taken for the matrix G [m, n] of its last axis and all others, as the
    kernel of a convolution is [height, width, C, F]. With singular values s from the
    largest, the first r are kept, the fewest with
    ``s_1^2 + ... + s_r^2 >= energy (s_1^2 + ... + s_n^2)``, and their sum of products
    is sent. A tensor of one axis, which has rank 1, is sent as it is; so is, but for
    rounding, whatever has rank 1, such as the kernel of every dense layer in the
    gradient of one example.

    The attacker who knows it reads the rank off what is sent, and with it the spaces of
    the rows and the columns that were kept. Nothing that was dropped has a part in
    either, so that of the true gradient ``G - (I - P) G (I - Q)`` is what was sent,
    where P and Q project on the two spaces. That is all products of G with what was
    kept, and linear in a candidate's G. Where the rank that is seen is whole, as after
    noise, and where nothing is seen of a step, or not all of a tensor, it truncates its
    candidate's gradient by its energy, with a derivative as if spaces stayed where they
    are. That the energy of what was dropped is small is not made use of. Each of its
    steps takes two decompositions of every matrix.

    This is in the spirit of the paper. What is known to us of its parts are names: the
    threshold here is the same for all layers and clients, where theirs adapts to the
    client; its weighted approximation by channels and its weighted aggregation are not
    built.

    Args:
      energy: share of the sum of squares that is kept at least, in (0, 1]; 1 is the
        identity.

    Raises:
      ValueError: for an energy outside (0, 1].

    Reference: Luo et al., "SVDefense" (NDSS 2026, arXiv 2510.03319), abstract.
    """
    if is_concrete(energy) and not 0 < energy <= 1:
        raise ValueError(f"energy must be in (0, 1], got {energy!r}")

    def truncate(x: Array) -> Array:
        if x.ndim < 2 or min(_as_matrix(x).shape) < 2:
            return x
        matrix = _as_matrix(widened(x))
        # The vectors of equal singular values have no derivative.
        found = _factors(jax.lax.stop_gradient(matrix))
        power = jnp.cumsum(found.sizes**2)
        # Kept is what is needed: where all before it have not enough.
        kept = jnp.concatenate([jnp.zeros(1), power[:-1]]) < energy * power[-1]
        left = found.left * kept[None]
        low = (left @ (left.T @ matrix)).reshape(x.shape).astype(x.dtype)
        return jnp.where(jnp.asarray(energy) >= 1, x, low)

    def release(rng: Rng, state, grads: Public, context: Context):
        del rng, context
        return jax.tree.map(truncate, grads), state

    def simulate(
        grads: Public, sent: Public | None, earlier: Public | None, private: Any
    ) -> Public:
        del earlier, private
        if sent is None:
            return jax.tree.map(truncate, grads)

        def of_tensor(g: Array, seen: Array) -> Array:
            if g.ndim < 2 or min(_as_matrix(g).shape) < 2:
                return g
            own = truncate(g)
            known, rank = project(g, seen)
            readable = (rank > 0) & (rank < min(_as_matrix(g).shape))
            return jnp.where(readable, known, own)

        return jax.tree.map(of_tensor, grads, sent)

    return Defence(release=release, simulate=simulate, deterministic=True)


def project(g: Array, seen: Array) -> tuple[Array, Array]:
    """Gives what of a tensor has a part in the row or column space of another.

    Args:
      g: any tensor of at least two axes.
      seen: like g.

    Returns:
      ``G - (I - P) G (I - Q)`` in the shape of g, and the rank [] that was read off;
      0 where an entry is NaN.
    """
    whole = ~jnp.any(jnp.isnan(seen))
    found = _factors(_as_matrix(widened(jnp.where(jnp.isnan(seen), 0, seen))))
    # What rounding leaves of a matrix of lower rank grows with the root of its sides.
    least = max(_as_matrix(g).shape) ** 0.5 * 4 * jnp.finfo(seen.dtype).eps
    kept = found.sizes > least * found.sizes[0]
    left, right = found.left * kept[None], found.right * kept[:, None]
    matrix = _as_matrix(widened(g))
    rest = matrix - left @ (left.T @ matrix)
    rest = rest - (rest @ right.T) @ right
    known = (matrix - rest).reshape(g.shape).astype(g.dtype)
    return known, jnp.where(whole, jnp.sum(kept), 0)


@one_at_a_time
def _factors(matrix: Array) -> Factors:
    return Factors(*jnp.linalg.svd(matrix, full_matrices=False))


def _as_matrix(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])
