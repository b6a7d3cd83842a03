"""First-order descent: what optax has, as the driver wants it."""

import jax
import optax

from kljax.attacks.attack import Optimiser
from kljax.typing import Array, PyTree


def from_optax(
    transform: optax.GradientTransformation,
    *,
    labels: optax.GradientTransformation | None = None,
    lock: optax.GradientTransformation | None = None,
) -> Optimiser:
    """Makes an optimiser of an optax transform.

    Args:
      transform: for images, and for everything else that has none of its own.
      labels: for unknown labels.
      lock: for unknown private keys or gates, whose scale is another one.
    """
    if labels is not None or lock is not None:
        groups = {"images": transform, "labels": labels, "lock": lock}
        groups = {name: own or transform for name, own in groups.items()}
        transform = optax.partition(
            groups,
            lambda free: tuple(
                jax.tree.map(lambda _, name=name: name, part)
                for name, part in zip(groups, free, strict=True)
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


DECAYED_AT = (3 / 8, 5 / 8, 7 / 8)  # of the steps, each time to a tenth


def sign_adam(
    learning_rate: float = 0.1, lock_rate: float = 0.05, *, steps: int | None = None
) -> Optimiser:
    """Descends by Adam on the sign of the images' gradient.

    Unknown labels, gates and private keys see their gradient itself; the last two have
    a rate of their own. All rates fall at the same steps.

    Args:
      learning_rate: of images and labels.
      lock_rate: of unknown gates and private keys.
      steps: of the whole descent, in which the rates fall to a tenth at `DECAYED_AT`;
        None for rates that do not fall.

    Reference: Geiping et al., "Inverting Gradients" (NeurIPS 2020), its code,
    reconstruction_algorithms.py.
    """

    def falling(rate):
        if steps is None:
            return rate
        # Very short runs may round two of them to one step: both still happen.
        falls: dict[int, float] = {}
        for share in DECAYED_AT:
            at = int(share * steps)
            falls[at] = falls.get(at, 1.0) * 0.1
        return optax.piecewise_constant_schedule(rate, falls)

    plain = optax.adam(falling(learning_rate))
    return from_optax(
        optax.chain(optax.scale_by_sign(), plain),
        labels=plain,
        lock=optax.adam(falling(lock_rate)),
    )
