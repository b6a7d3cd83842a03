"""Language models: what an attacker has who has learned what sentences look like."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from kljax.core.types import Array, PyTree


class LanguageModel(NamedTuple):
    """A trained language model.

    Attributes:
      log_prob: ``(weights, tokens [..., T]) -> [..., T]``, the log-probability of each
        token given those before it, in nats; 0 in the place of padding, which is what
        is below 0.
      weights: tree of arrays; they may be traced.
      sentences: [n] indices, in their dataset, of those that it was made from.
    """

    log_prob: Callable[[PyTree, Array], Array]
    weights: PyTree
    sentences: np.ndarray

    def surprise(self, tokens: Array) -> Array:
        """Averages minus the log-probability over all tokens [..., T]: [] in nats.

        It is the logarithm of the perplexity.
        """
        count = jnp.maximum(jnp.sum(tokens >= 0), 1)
        return -jnp.sum(self.log_prob(self.weights, tokens)) / count
