"""Optimisers: one value and gradient in, one move out.

All are `Optimiser`s of the driver, so that each step costs exactly one evaluation, in
every lane of a batch.
"""

from kljax.attacks.optimisers.catalogue import (
    OPTIMISERS,
    make_optimiser,
    refuse_optimiser,
)
from kljax.attacks.optimisers.first_order import (
    adam,
    cosine_adam,
    from_optax,
    rmsprop,
    sign_adam,
)
from kljax.attacks.optimisers.quasi_newton import lbfgs, lbfgs_torch

__all__ = [
    "OPTIMISERS",
    "make_optimiser",
    "refuse_optimiser",
    "adam",
    "sign_adam",
    "cosine_adam",
    "rmsprop",
    "from_optax",
    "lbfgs",
    "lbfgs_torch",
]
