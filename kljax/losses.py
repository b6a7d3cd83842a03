"""Losses of the client's training: ``loss(logits [B, Kc], targets [B, Kc]) -> []``.

Targets are class probabilities (one-hot for a plain label), so that an attacker can
optimise them; each loss is the mean over the B examples, as in PyTorch.
"""

import jax
import jax.numpy as jnp

from kljax.typing import Array, Loss


def cross_entropy(logits: Array, targets: Array) -> Array:
    """Computes ``-sum_c targets_c log softmax(logits)_c``, the mean over examples."""
    return -jnp.mean(jnp.sum(jax.nn.log_softmax(logits) * targets, axis=-1))


def squared_error(logits: Array, targets: Array) -> Array:
    """Computes ``sum_c (logits_c - targets_c)^2 / 2``, the mean over examples."""
    return jnp.mean(jnp.sum((logits - targets) ** 2, axis=-1)) / 2


LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "squared_error": squared_error,
}
