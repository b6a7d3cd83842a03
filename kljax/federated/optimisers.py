"""Optimisers of the clients and of the server, by name."""

import math
from collections.abc import Callable

import optax

from kljax.core.checks import shown
from kljax.core.registry import make_named
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


def server_sgd(rate: float, momentum: float = 0.0) -> optax.GradientTransformation:
    """Makes the server's SGD: FedAvg, and with momentum FedAvgM.

    Args:
      rate: 1 adds the aggregate.
      momentum: share of the move before that is made again.

    Raises:
      ValueError: for a momentum outside [0, 1).

    Reference: Hsu, Qi, Brown, "Measuring the Effects of Non-Identical Data Distribution
    for Federated Visual Classification" (2019), section 4.2.
    """
    _check_decay("sgd", "momentum", momentum)
    return optax.sgd(rate, momentum or None)


def server_adam(
    rate: float, b1: float = 0.9, b2: float = 0.99, tau: float = 1e-3
) -> optax.GradientTransformation:
    """Makes FedAdam: Adam on minus the aggregate.

    Each weight moves by about the rate in a round, so that a rate of 1 is far too
    large. Differs from the paper: optax corrects both moments for their start at 0.

    Args:
      rate: the paper's eta.
      b1, b2: decay of the first and of the second moment.
      tau: added to the root of the second moment: how much Adam adapts.

    Raises:
      ValueError: for b1 or b2 outside [0, 1), and tau that is not above 0.

    Reference: Reddi et al., "Adaptive Federated Optimization" (ICLR 2021), algorithm 2;
    b1, b2 and tau are those of its experiments.
    """
    _check_moments("adam", b1, b2, tau)
    return optax.adam(rate, b1, b2, tau)


def server_yogi(
    rate: float, b1: float = 0.9, b2: float = 0.99, tau: float = 1e-3
) -> optax.GradientTransformation:
    """Makes FedYogi: as `server_adam`, but the second moment shrinks additively.

    Differs from the paper as FedAdam does; both moments start at 1e-6, which is the
    square of the default tau.
    """
    _check_moments("yogi", b1, b2, tau)
    return optax.yogi(rate, b1, b2, tau)


def _check_moments(name: str, b1: float, b2: float, tau: float) -> None:
    _check_decay(name, "b1", b1)
    _check_decay(name, "b2", b2)
    if not 0 < tau < math.inf:
        raise ValueError(f"{name} needs a finite tau > 0, got {shown(tau)}")


def _check_decay(name: str, what: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{name} needs {what} >= 0 and < 1, got {shown(value)}")


# (learning rate, *numbers) -> transformation of minus the aggregate
SERVER_OPTIMISERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "sgd": server_sgd,
    "adam": server_adam,
    "yogi": server_yogi,
}
ADAPTIVE_SERVERS = ("adam", "yogi")  # whose steps are of about the learning rate


def make_server_optimiser(text: str, rate: float) -> optax.GradientTransformation:
    """Makes a server's optimiser from its name and its numbers, such as ``yogi=.9``.

    Args:
      text: ``NAME[=OPTIONS]``, as in `kljax.core.registry.make_named`; a name of
        `SERVER_OPTIMISERS`, or ``package.module:function`` for a function of the
        learning rate and the numbers that gives an `optax.GradientTransformation`.
      rate: learning rate.

    Raises:
      ValueError: for an unknown name, numbers that the optimiser does not take, and a
        function that gives something else.
    """
    made = make_named("server_optimiser", text, SERVER_OPTIMISERS, rate)
    if not isinstance(made, optax.GradientTransformation):
        raise ValueError(
            f"server_optimiser {text!r} gave no optax.GradientTransformation, but "
            f"{type(made).__name__}"
        )
    return made
