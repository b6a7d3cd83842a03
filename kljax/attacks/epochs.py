"""Epochs: unknowns of their own for each, and what becomes of them in the end."""

import jax
import jax.numpy as jnp
import optax

from kljax.attacks.attack import Attack, Reconstruction, Unknown
from kljax.core.types import Array, Rng
from kljax.threat import View


def repeated(unknown: Unknown, epochs: int) -> Unknown:
    """Repeats what an unknown decodes to, [n, ...], for every epoch: [E n, ...]."""

    def decode(free, fixed):
        value = unknown.decode(free, fixed)
        return jnp.tile(value, (epochs, *(1,) * (value.ndim - 1)))

    return unknown._replace(decode=decode)


def merged(attack: Attack, epochs: int) -> Attack:
    """Makes one set of images of those that an attack found for every epoch.

    Each epoch's images are paired with the first's by the highest total PSNR, and
    averaged over the epochs. Labels are those of the first.

    Args:
      attack: its reconstruction has E n images and labels, epoch by epoch.
      epochs: E.

    Reference: Dimitrov et al. 2022; code eth-sri/fedavg_leakage,
    attacks/grad_attack.py (compute_matching with metric psnr).
    """

    def merge(inputs: Array) -> Array:
        images = inputs.reshape(epochs, -1, *inputs.shape[1:])

        def in_order(others: Array) -> Array:
            return others[best_order(others, images[0])]

        return jnp.mean(jax.lax.map(in_order, images), axis=0)

    def run(rng: Rng, view: View) -> Reconstruction:
        found = attack(rng, view)
        examples = found.labels.shape[0] // epochs
        info = dict(found.info)
        if "snapshots" in info:
            info["snapshots"] = jax.lax.map(merge, info["snapshots"])
        return found._replace(
            inputs=merge(found.inputs), labels=found.labels[:examples], info=info
        )

    return run


def best_order(guesses: Array, truths: Array) -> Array:
    """Gives the order [n] of guesses [n, ...] with the highest total PSNR to truths.

    Images are clipped to [0, 1]. Broken ones are as far from everything as can be.
    """
    count = truths.shape[0]
    guesses, truths = (
        jnp.clip(x, 0.0, 1.0).reshape(count, -1) for x in (guesses, truths)
    )
    error = jnp.mean((truths[:, None] - guesses[None]) ** 2, axis=-1)
    # A cost that is not a number would never let the matching end.
    error = jnp.where(jnp.isfinite(error), error, 1.0)
    rows, columns = optax.assignment.hungarian_algorithm(jnp.log10(error + 1e-10))
    return jnp.zeros(count, columns.dtype).at[rows].set(columns)
