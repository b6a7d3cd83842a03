"""Optimisers: what moves a search.

An `Optimiser` takes one value and gradient and makes one move, so that each step costs
exactly one evaluation, in every lane of a batch. An `Evolution` asks for a population.
"""

from kljax.attacks.optimisers.catalogue import (
    OPTIMISERS,
    make_optimiser,
    refuse_optimiser,
)
from kljax.attacks.optimisers.evolutionary import cma_es
from kljax.attacks.optimisers.first_order import (
    adam,
    cosine_adam,
    from_optax,
    ramped_adam,
    rmsprop,
    sign_adam,
)
from kljax.attacks.optimisers.gradient_penalty import with_gradient_penalty
from kljax.attacks.optimisers.quasi_newton import lbfgs, lbfgs_torch

__all__ = [
    "OPTIMISERS",
    "make_optimiser",
    "refuse_optimiser",
    "adam",
    "sign_adam",
    "cosine_adam",
    "ramped_adam",
    "rmsprop",
    "from_optax",
    "lbfgs",
    "lbfgs_torch",
    "cma_es",
    "with_gradient_penalty",
]
