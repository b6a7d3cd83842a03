"""GradDefense's compensation: a mean without the directions that look like noise."""

import jax
import jax.numpy as jnp

from kljax.core.types import Array
from kljax.federated.aggregation.aggregator import Aggregator
from kljax.federated.aggregation.options import check_bound
from kljax.federated.aggregation.vectors import as_rows, as_upload
from kljax.federated.clients import Upload
from kljax.federated.server import ServerState

ASPECT = 6.0  # rows over columns: the official code's Q


def denoised_mean(std: float, aspect: float = ASPECT) -> Aggregator:
    """Makes the weighted mean of uploads, less the directions of independent noise.

    The mean change of the weights is written as one matrix, tensor after tensor. Of
    noise alone, the covariance of its columns has eigenvalues within the bounds of
    Marchenko and Pastur; eigenvectors whose eigenvalue is in between are taken out of
    every row, see `without_noise`. What clients changed along them is lost as well.
    Norm statistics are averaged as they are.

    Weights are used, and so is how unequal they are: of independent noise the mean has
    the variance ``std^2 sum w^2 / (sum w)^2``.

    Args:
      std: of the noise on one upload, the root mean square over its entries. Of T steps
        of plain descent at rate r under ``graddefense=K,P,S`` it is
        ``r S sqrt(T P / K)``.
      aspect: rows of the matrix over its columns, 1 or more.

    Raises:
      ValueError: for a std that is not above 0, and an aspect below 1.

    Reference: Wang et al., "Protect Privacy from Gradient Leakage Attack in Federated
    Learning" (INFOCOM 2022); code wangjunxiao/GradDefense, compensate.py. Differs from
    it: the matrix is filled up with zeros, where the code takes the next divisor of the
    number of entries; and the variance is that of a mean, where demo_compensate.py has
    n^2 times as much for n clients.
    """
    check_bound("denoised-mean", std, "std")
    check_bound("denoised-mean", aspect, "aspect")
    if aspect < 1:
        raise ValueError(f"denoised-mean needs an aspect >= 1, got {aspect!r}")

    def add(server: ServerState, upload: Upload, weight: Array):
        del server
        return jax.tree.map(lambda x: weight * x, upload), weight**2

    def finish(server: ServerState, total: tuple[Upload, Array], weight: Array):
        summed, squares = total
        mean = jax.tree.map(lambda x: x / weight, summed)
        alike = jax.tree.map(lambda x: x[None], mean.delta)
        deviation = std * jnp.sqrt(squares) / weight
        cleared = without_noise(as_rows(alike)[0], deviation, aspect)
        return mean._replace(delta=as_upload(cleared, alike)), server.aggregator

    return Aggregator(finish, add, name="denoised-mean")


def without_noise(vector: Array, std: float | Array, aspect: float = ASPECT) -> Array:
    """Takes the directions out of a vector whose variance is that of noise.

    The vector is written as a matrix C [V, W], row after row, filled up with zeros. The
    eigenvectors of the covariance of its columns are kept where their eigenvalue is at
    most ``(1 - sqrt(W / V))^2 std^2`` or at least ``(1 + sqrt(W / V))^2 std^2``, and
    the rows of C are projected on those.

    Args:
      vector: [D].
      std: [] of the noise on each entry.
      aspect: V / W, nearly; W is the largest whole number up to ``sqrt(D / aspect)``,
        and 1 at least.

    Returns:
      [D].
    """
    columns = max(1, int((vector.size / aspect) ** 0.5))
    rows = -(-vector.size // columns)
    padded = jnp.pad(vector, (0, rows * columns - vector.size))
    matrix = padded.reshape(rows, columns)
    centred = matrix - jnp.mean(matrix, axis=0)[None]
    product = jnp.matmul(centred.T, centred, precision="highest")
    values, directions = jnp.linalg.eigh(product / max(rows - 1, 1))
    edge = (columns / rows) ** 0.5
    # A square matrix has a direction of no variance, at the lower bound, which is 0.
    zero = columns * jnp.finfo(values.dtype).eps * values[-1]
    low, high = jnp.maximum((1 - edge) ** 2 * std**2, zero), (1 + edge) ** 2 * std**2
    noisy = (values > low) & (values < high)
    kept = jnp.where(noisy[None], 0.0, directions)
    cleared = jnp.matmul(
        jnp.matmul(matrix, kept, precision="highest"), kept.T, precision="highest"
    )
    return cleared.ravel()[: vector.size]
