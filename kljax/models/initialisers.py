"""How weights are drawn: ``(rng, shape, dtype, out_sharding) -> array``."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from kljax.core.types import Array

Initialiser = Callable[..., Array]


def uniform(limit: float) -> Initialiser:
    """Draws from U(-limit, limit); 0.5 is the one of DLG and of FedKL's DLG test."""

    def init(rng, shape, dtype=jnp.float32, out_sharding=None):
        del out_sharding  # Flax passes it to every initialiser
        return jax.random.uniform(rng, shape, dtype, -limit, limit)

    return init


def torch_uniform(fan_in: int) -> Initialiser:
    """Draws from U(-1/sqrt(fan_in), 1/sqrt(fan_in)), PyTorch's default, bias too."""
    return uniform(fan_in**-0.5)


def normal(std: float) -> Initialiser:
    """Draws from N(0, std^2)."""
    return jax.nn.initializers.normal(std)


def kaiming(fan: str) -> Initialiser:
    """Draws kernels from N(0, 2 / fan): He et al. (2015), made for ReLU.

    Args:
      fan: ``fan_in`` or ``fan_out``; a convolution's fans count its window.
    """
    return jax.nn.initializers.variance_scaling(2.0, fan, "normal")
