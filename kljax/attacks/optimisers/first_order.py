"""First-order descent: what optax has, as the driver wants it."""

import jax
import optax

from kljax.attacks.attack import Optimiser
from kljax.typing import Array, PyTree


def from_optax(
    transform: optax.GradientTransformation,
    *,
    lock: optax.GradientTransformation | None = None,
) -> Optimiser:
    """Makes an optimiser of an optax transform.

    Args:
      transform: for images and labels, and for everything if `lock` is None.
      lock: for unknown private keys or gates, whose scale is another one.
    """
    if lock is not None:
        transform = optax.partition(
            {"data": transform, "lock": lock},
            lambda free: tuple(
                jax.tree.map(lambda _, name=name: name, part)
                for name, part in zip(("data", "data", "lock"), free, strict=True)
            ),
        )

    def step(free: PyTree, state: PyTree, value: Array, grads: PyTree):
        del value
        updates, state = transform.update(grads, state, free)
        return optax.apply_updates(free, updates), state

    return Optimiser(transform.init, step)


def adam(learning_rate: float = 0.1, lock_rate: float = 0.05) -> Optimiser:
    """Descends by Adam; unknown gates and private keys have a rate of their own."""
    return from_optax(optax.adam(learning_rate), lock=optax.adam(lock_rate))
