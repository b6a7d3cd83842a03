"""Epochs that hold the same images, in whatever order."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from kljax.attacks.attack import Candidate, Prior
from kljax.attacks.priors.sums import check_weight
from kljax.core.types import Array
from kljax.models.convolution import CHANNELS_LAST
from kljax.threat import View

REDUCTIONS = {"l2_mean": jnp.mean, "l2_max": jnp.max}


def order_invariance(
    weight: float,
    epochs: int,
    kind: str,
    features: Callable[[Array], Array] = lambda images: images,
) -> Prior:
    """Asks that all epochs of a candidate hold the same images, in whatever order.

    The images of each epoch are reduced to their mean or maximum, entry by entry, and
    the squared differences of these averaged over all pairs of epochs.

    Args:
      weight: 0 or more.
      epochs: E; the candidate has E n images, epoch by epoch.
      kind: ``l2_mean`` or ``l2_max``.
      features: of images [E n, H, W, C], compared instead of them.

    Raises:
      ValueError: for a negative weight, epochs below 1, or an unknown kind.

    Reference: Dimitrov et al. 2022, section 4; code utils/flax_losses.py.
    """
    check_weight(weight)
    if epochs < 1 or kind not in REDUCTIONS:
        raise ValueError(
            f"epochs={epochs!r} must be at least 1, and kind={kind!r} one of "
            f"{tuple(REDUCTIONS)}"
        )

    def prior(view: View, candidate: Candidate, progress: Array) -> Array:
        del view, progress
        values = features(candidate.inputs)
        values = values.reshape(epochs, -1, *values.shape[1:])
        reduced = REDUCTIONS[kind](values, axis=1)
        # Over all pairs, the mean squared difference is twice the variance.
        return weight * 2 * jnp.mean(jnp.var(reduced, axis=0))

    return prior


def random_convolution(
    channels: int, *, features: int = 96, seed: int = 0
) -> Callable[[Array], Array]:
    """Makes a fixed random 3x3 convolution [N, H, W, C] -> [N, H, W, features].

    Reference: Dimitrov et al. 2022, code attacks/grad_attack.py (rand_conv); weights
    N(0, 1 / (9 C)), as Flax draws them but for its truncation.
    """
    shape = (3, 3, channels, features)
    kernel = jax.random.normal(jax.random.key(seed), shape) / (9 * channels) ** 0.5

    def convolve(images: Array) -> Array:
        return jax.lax.conv_general_dilated(
            images, kernel, (1, 1), "SAME", dimension_numbers=CHANNELS_LAST
        )

    return convolve
