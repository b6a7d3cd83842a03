"""The geometric median of uploads, by smoothed Weiszfeld iterations."""

import jax
import jax.numpy as jnp

from kljax.core.checks import shown, whole
from kljax.core.types import Array
from kljax.federated.aggregation.aggregator import Aggregator
from kljax.federated.aggregation.options import check_bound
from kljax.federated.aggregation.vectors import as_rows, as_upload
from kljax.federated.clients import Upload
from kljax.federated.server import ServerState


def geometric_median(
    iterations: int = 100, tolerance: float = 1e-6, smoothing: float = 1e-6
) -> Aggregator:
    """Makes the point of the least weighted sum of distances to all uploads.

    An upload is one vector here: the change of the weights together with the norm
    statistics. From the weighted mean on, each iteration takes the mean with weights
    ``w_i / max(smoothing, |v - upload_i|)``. It ends when the sum of distances has
    fallen by no more than a share of itself, or after so many iterations.

    Weights are used: who has more examples counts for more, up to half of all.

    From the mean, a single upload at a great distance draws the first iterations after
    it: each brings the point nearer by a factor of the order of n. With the 3
    iterations that the paper runs in a round, one client still moves the point without
    bound; the default goes on until it stands still.

    It needs three clients: of two, all between them are medians.

    Args:
      iterations: at most so many; 3 in the paper's experiments.
      tolerance: share of the sum of distances.
      smoothing: the paper's nu, a distance from which on nearer uploads count no more.

    Raises:
      ValueError: for iterations that are no whole number >= 1, and for a tolerance or
        smoothing that is not above 0.

    Reference: Pillutla, Kakade, Harchaoui, "Robust Aggregation for Federated Learning"
    (IEEE Transactions on Signal Processing 2022), algorithm 2 (the smoothed Weiszfeld
    algorithm).
    """
    if not whole(iterations) or iterations < 1:
        raise ValueError(
            "geometric-median makes a whole number of iterations >= 1, got "
            f"{shown(iterations)}"
        )
    check_bound("geometric-median", tolerance, "tolerance")
    check_bound("geometric-median", smoothing, "smoothing")

    def finish(server: ServerState, uploads: Upload, weights: Array):
        rows = as_rows(uploads)
        point = weiszfeld(rows, weights, iterations, tolerance, smoothing)
        return as_upload(point, uploads), server.aggregator

    return Aggregator(finish, gathers=True, least=3, name="geometric-median")


def weiszfeld(
    rows: Array, weights: Array, iterations: int, tolerance: float, smoothing: float
) -> Array:
    """Finds the geometric median [D] of n vectors; see `geometric_median`.

    Args:
      rows: [n, D].
      weights: [n], above 0.
      iterations, tolerance, smoothing: see `geometric_median`.
    """
    weights = weights / jnp.sum(weights)

    def distances(point: Array) -> Array:
        return jnp.sqrt(jnp.sum((rows - point[None]) ** 2, axis=1))

    def going_on(carry) -> Array:
        number, _, _, before, total = carry
        return (number < iterations) & (before - total > tolerance * total)

    def step(carry):
        number, _, lengths, _, before = carry
        nearness = weights / jnp.maximum(smoothing, lengths)
        point = (nearness / jnp.sum(nearness)) @ rows
        lengths = distances(point)
        return number + 1, point, lengths, before, weights @ lengths

    start = weights @ rows
    lengths = distances(start)
    carry = 0, start, lengths, jnp.inf, weights @ lengths
    return jax.lax.while_loop(going_on, step, carry)[1]
