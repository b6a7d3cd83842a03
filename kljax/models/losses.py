"""Losses of the client's training: ``loss(logits [B, Kc], targets [B, Kc]) -> []``.

Targets are class probabilities (one-hot for a plain label), so that an attacker can
optimise them; each loss is the mean over the B examples, as in PyTorch.
"""

import jax
import jax.numpy as jnp

from kljax.core.types import Array, Loss


def cross_entropy(logits: Array, targets: Array) -> Array:
    """Computes ``-sum_c targets_c log softmax(logits)_c``, the mean over examples.

    Raises:
      ValueError: for logits and targets of different shapes.
    """
    _check_alike(logits, targets)
    return -jnp.mean(jnp.sum(jax.nn.log_softmax(logits) * targets, axis=-1))


def squared_error(logits: Array, targets: Array) -> Array:
    """Computes ``sum_c (logits_c - targets_c)^2 / 2``, the mean over examples.

    Raises:
      ValueError: for logits and targets of different shapes.
    """
    _check_alike(logits, targets)
    return jnp.mean(jnp.sum((logits - targets) ** 2, axis=-1)) / 2


def checked(loss: Loss) -> Loss:
    """Wraps somebody's loss, so that it says what it cannot work with.

    The wrapped loss raises ValueError for logits that are not [B, Kc], where the loss
    itself fails, and where it gives anything but one number.
    """

    def checked_loss(logits: Array, targets: Array) -> Array:
        name = getattr(loss, "__name__", repr(loss))
        shapes = f"logits {logits.shape} and targets {targets.shape}"
        if logits.ndim != 2:
            raise ValueError(
                f"the loss {name!r} is given {shapes}, expected [B, Kc]: the network "
                "has to give one logit per example and class"
            )
        try:
            value = loss(logits, targets)
        except (
            TypeError,
            ValueError,
            LookupError,
            AttributeError,
            AssertionError,
        ) as e:
            raise ValueError(
                f"the loss {name!r} fails on {shapes}: targets are probabilities "
                f"[B, Kc], not integer labels ({type(e).__name__}: {e})"
            ) from e
        # A tuple, say of the loss and something else, has no shape.
        if not jax.tree_util.all_leaves([value]):
            raise ValueError(
                f"the loss {name!r} gives {type(value).__name__}, expected one number"
            )
        if jnp.shape(value) != ():
            raise ValueError(
                f"the loss {name!r} gives shape {jnp.shape(value)}, expected one "
                "number: take the mean over the examples"
            )
        return value

    return checked_loss


def _check_alike(logits: Array, targets: Array) -> None:
    # Broadcast, one logit would stand for every class.
    if jnp.shape(logits) != jnp.shape(targets):
        raise ValueError(
            f"logits {jnp.shape(logits)} and targets {jnp.shape(targets)} differ in "
            "shape, expected [B, Kc] of both"
        )


LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "squared_error": squared_error,
}
