"""Losses of the client's training: ``loss(outputs [B, ...], targets [B, ...]) -> []``.

Targets are class probabilities [B, Kc] (one-hot for a plain label), so that an attacker
can optimise them; of sequences [B, T, V], and numbers [B, D] of a regression. Each loss
is the mean over the B examples, as in PyTorch; over sequences, the mean over all tokens
but padding, whose targets are zero throughout.
"""

import jax
import jax.numpy as jnp

from kljax.core.types import Array, Loss


def cross_entropy(logits: Array, targets: Array) -> Array:
    """Computes ``-sum_c targets_c log softmax(logits)_c``, the mean over examples.

    Of sequences [B, T, V] it is the mean over tokens, without padding.

    Raises:
      ValueError: for logits and targets of different shapes.
    """
    _check_alike(logits, targets)
    if logits.ndim < 3:
        return -jnp.mean(jnp.sum(jax.nn.log_softmax(logits) * targets, axis=-1))
    counted = jnp.any(targets != 0, axis=-1)
    # Whatever stands in padding, and its derivative, is out of the way first.
    logits = jnp.where(counted[..., None], logits, 0.0)
    each = jnp.sum(jax.nn.log_softmax(logits) * targets, axis=-1)
    return -jnp.sum(each) / jnp.maximum(jnp.sum(counted), 1)


def squared_error(logits: Array, targets: Array) -> Array:
    """Computes ``sum_c (logits_c - targets_c)^2 / 2``, the mean over examples.

    Raises:
      ValueError: for logits and targets of different shapes.
    """
    _check_alike(logits, targets)
    return jnp.mean(jnp.sum((logits - targets) ** 2, axis=-1)) / 2


def checked(loss: Loss) -> Loss:
    """Wraps somebody's loss, so that it says what it cannot work with.

    The wrapped loss raises ValueError for logits with other axes than the targets,
    where the loss itself fails, and where it gives anything but one number.
    """

    def checked_loss(logits: Array, targets: Array) -> Array:
        name = getattr(loss, "__name__", repr(loss))
        shapes = f"logits {logits.shape} and targets {targets.shape}"
        if logits.ndim != targets.ndim or logits.ndim < 2:
            raise ValueError(
                f"the loss {name!r} is given {shapes}, expected [B, Kc] of classes: "
                "the network has to give one logit per example and class, or one "
                "number for each of a target"
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
                f"the loss {name!r} fails on {shapes}: targets of classes are "
                f"probabilities [B, Kc], not integer labels ({type(e).__name__}: {e})"
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
            "shape, expected the same of both, [B, Kc] of classes"
        )


LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "squared_error": squared_error,
}
# Kinds of targets (`kljax.core.targets`) that each is a loss of.
TARGETS: dict[str, tuple[str, ...]] = {
    "cross_entropy": ("classes", "distributions", "sequences"),
    "squared_error": ("classes", "distributions", "numbers"),
}


def check_fits(name: str, kind: str) -> None:
    """Refuses a loss that is none of a kind of targets; one of your own fits all.

    Raises:
      ValueError: with the losses that fit.
    """
    if kind not in TARGETS.get(name, (kind,)):
        fitting = [loss for loss, kinds in TARGETS.items() if kind in kinds]
        raise ValueError(
            f"loss {name!r} does not fit targets that are {kind}: take "
            f"{' or '.join(fitting) or 'package.module:function, one of your own'}"
        )
