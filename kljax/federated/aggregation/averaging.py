"""Streaming rules: weighted sums over clients, divided last."""

import jax
import jax.numpy as jnp
import optax

from kljax.core.types import Array, PyTree, Rng
from kljax.federated.aggregation.aggregator import Aggregator
from kljax.federated.aggregation.options import check_bound
from kljax.federated.aggregation.vectors import as_rows, as_upload
from kljax.federated.clients import Upload
from kljax.federated.server import ServerState


def mean() -> Aggregator:
    """Makes the weighted mean of uploads, ``sum_c w_c upload_c / sum_c w_c``.

    Weights are used. One client can move the mean anywhere.

    Reference: McMahan et al., AISTATS 2017, algorithm 1.
    """

    def add(server: ServerState, upload: Upload, weight: Array) -> Upload:
        del server
        return _scaled(upload, weight)

    return Aggregator(_divide, add, name="mean", weighted_sum=True)


def norm_bounding(bound: float, noise: float = 0.0) -> Aggregator:
    """Makes the weighted mean of uploads that are no longer than a bound.

    A client's upload is one vector here: its change of the weights together with its
    change of the norm statistics. A longer one is shortened to the bound,
    ``change / max(1, |change| / bound)``, so that one client moves the mean by at most
    its share of the bound. Gaussian noise is added to the mean change of the weights,
    if it is asked for; statistics have none, since a variance might turn negative.

    Weights are used, as in the mean that is bounded.

    Args:
      bound: of the L2 norm of what a client changes; the paper's M.
      noise: standard deviation of what is added to each weight in a round; the paper's
        weak differential privacy, for which no guarantee is computed.

    Raises:
      ValueError: for a bound that is not above 0, and noise below 0.

    Reference: Sun et al., "Can You Really Backdoor Federated Learning?" (2019), norm
    thresholding and weak differential privacy. That the norm statistics are bounded,
    too, is kljax's own: what they say could do harm otherwise.
    """
    check_bound("norm-bounding", bound)
    if noise:
        check_bound("norm-bounding", noise, "noise")

    def add(server: ServerState, upload: Upload, weight: Array) -> Upload:
        stats = jax.tree.map(jnp.subtract, upload.stats, server.stats)
        change = Upload(upload.delta, stats)
        factor = 1 / jnp.maximum(1, optax.tree.norm(change) / bound)
        delta, stats = _scaled(change, factor)
        bounded = Upload(delta, jax.tree.map(jnp.add, server.stats, stats))
        return _scaled(bounded, weight)

    def add_noise(server: ServerState, total: Upload, weight: Array, *, rng: Rng):
        upload, memory = _divide(server, total, weight)
        alike = jax.tree.map(lambda x: x[None], upload.delta)
        # One draw for all leaves, which compiles once.
        drawn = noise * jax.random.normal(rng, (as_rows(alike).shape[1],))
        noisy = jax.tree.map(jnp.add, upload.delta, as_upload(drawn, alike))
        return upload._replace(delta=noisy), memory

    if noise:
        return Aggregator(add_noise, add, name="norm-bounding", needs=("rng",))
    return Aggregator(_divide, add, name="norm-bounding")


def _scaled(tree: PyTree, factor: Array) -> PyTree:
    return jax.tree.map(lambda x: factor * x, tree)


def _divide(server: ServerState, total: Upload, weight: Array) -> tuple[Upload, PyTree]:
    return jax.tree.map(lambda x: x / weight, total), server.aggregator
