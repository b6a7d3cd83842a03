"""Optimisers of the clients, by name."""

from collections.abc import Callable

import optax

from kljax.core.types import Array


def sgd(
    rate: float | Array, *, momentum: float, nesterov: bool, weight_decay: float
) -> optax.GradientTransformation:
    """Makes PyTorch's SGD: weight decay enters the gradient before the momentum."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.sgd(rate, momentum or None, nesterov),
    )


def adam(
    rate: float | Array, *, momentum: float, nesterov: bool, weight_decay: float
) -> optax.GradientTransformation:
    """Makes PyTorch's Adam, whose weight decay enters the gradient before all else.

    `momentum` and `nesterov` are those of SGD, and are not used.
    """
    del momentum, nesterov
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.adam(rate))


# (learning rate, *, momentum, nesterov, weight_decay) -> transformation
CLIENT_OPTIMISERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "sgd": sgd,
    "adam": adam,
}
