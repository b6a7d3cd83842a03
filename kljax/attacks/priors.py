"""Priors: what the attacker believes about images before he sees a gradient."""

import jax.numpy as jnp

from kljax.attacks.attack import Candidate, Prior
from kljax.threat import View
from kljax.typing import Array


def total_variation(weight: float, *, relative: bool) -> Prior:
    """Adds ``weight * (mean |dx| + mean |dy|)`` of the images.

    Args:
      weight: 0 or more.
      relative: whether each image's variation is divided by its standard deviation.
        Behind a norm at batch 1 the gradient does not see an image's contrast, and
        plain total variation is then lowest for a flat image: it shrinks the image
        instead of smoothing it.

    Raises:
      ValueError: for a negative weight.

    Reference: Geiping et al. 2020 (plain form, both directions averaged apart).
    """
    if not weight >= 0:
        raise ValueError(f"weight must be >= 0, got {weight!r}")

    def prior(view: View, candidate: Candidate, progress: Array) -> Array:
        del view, progress
        images = candidate.images
        axes = (1, 2, 3)
        variation = jnp.mean(jnp.abs(jnp.diff(images, axis=1)), axes)
        variation += jnp.mean(jnp.abs(jnp.diff(images, axis=2)), axes)
        if relative:
            # sqrt has no derivative at 0, where a flat image would be.
            variation /= jnp.sqrt(jnp.var(images, axes) + 1e-8)
        return weight * jnp.mean(variation)

    return prior
