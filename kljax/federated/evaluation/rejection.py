"""Rejection: a network that does not answer where it is not confident."""

import jax
import jax.numpy as jnp

from kljax.core.types import Array, Model, Output


def rejecting(model: Model, threshold: float) -> Model:
    """Makes the network that rejects an input below a confidence.

    Confidence is the largest softmax probability. In evaluation mode the network has
    one logit more, the last one, which is the largest where confidence is below the
    threshold: `accuracy` then counts a rejected example as wrong, and attack success
    does not count it. In train mode it is the network itself.

    Args:
      model: a network with one logit per class.
      threshold: FLIP's tau, in [0, 1); 0 rejects nothing.

    Raises:
      ValueError: for another threshold.

    Reference: Zhang et al., "FLIP" (ICLR 2023), which rejects below .4 under continuous
    poisoning, and nothing under single-shot.
    """
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold must be in [0, 1), got {threshold!r}")
    if threshold == 0:
        return model

    def apply(*given, train: bool, **options) -> Output:
        out = model.apply(*given, train=train, **options)
        return out if train else out._replace(logits=_with_rejection(out.logits))

    def _with_rejection(logits: Array) -> Array:
        whole = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        return jnp.concatenate([logits, whole + jnp.log(threshold)], axis=-1)

    return Model(model.init, apply)
