"""Smooth images: priors on the differences of neighbouring pixels."""

import jax.numpy as jnp

from kljax.attacks.attack import Candidate, Prior
from kljax.attacks.objectives import absolute, root
from kljax.attacks.priors.sums import check_weight
from kljax.core.types import Array
from kljax.threat import View


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
    check_weight(weight)

    def prior(view: View, candidate: Candidate, progress: Array) -> Array:
        del view, progress
        variation = mean_variation(candidate.inputs)
        if relative:
            # sqrt has no derivative at 0, where a flat image would be.
            variation /= jnp.sqrt(jnp.var(candidate.inputs, (1, 2, 3)) + 1e-8)
        return weight * jnp.mean(variation)

    return prior


def mean_variation(images: Array) -> Array:
    """Computes ``mean |dx| + mean |dy|`` [B] of images [B, H, W, C]."""
    rows, columns = (
        jnp.mean(absolute(jnp.diff(images, axis=axis)), (1, 2, 3)) for axis in (1, 2)
    )
    return rows + columns


def squared_variation(weight: float) -> Prior:
    """Adds ``2 weight (mean dx^2 + mean dy^2)`` of the images.

    Raises:
      ValueError: for a negative weight.

    Reference: GRNN (Ren, Deng, Xie 2022), its code: both sums are divided by the
    number of their differences and of the images, and their sum is doubled.
    """
    check_weight(weight)

    def prior(view: View, candidate: Candidate, progress: Array) -> Array:
        del view, progress
        rows, columns = (jnp.diff(candidate.inputs, axis=axis) for axis in (1, 2))
        return 2 * weight * (jnp.mean(rows**2) + jnp.mean(columns**2))

    return prior


def cyclic_variation(weight: float) -> Prior:
    """Adds ``weight * sum(dx^2 + dy^2 + 1e-7)`` of an image, mean over the images.

    Differences go round: the last row is followed by the first.

    Raises:
      ValueError: for a negative weight.

    Reference: Dimitrov et al. 2022, code utils/measures.py (total_variation).
    """
    check_weight(weight)

    def prior(view: View, candidate: Candidate, progress: Array) -> Array:
        del view, progress
        images = candidate.inputs
        squares = sum(
            (images - jnp.roll(images, -1, axis=axis)) ** 2 for axis in (1, 2)
        )
        return weight * jnp.sum(squares + 1e-7) / images.shape[0]

    return prior


def diagonal_variation(weight: float) -> Prior:
    """Adds the norms of the images' differences along four directions.

    Rows, columns and both diagonals; each norm is over all images at once, not
    squared.

    Raises:
      ValueError: for a negative weight.

    Reference: Hatamizadeh et al. (IEEE TMI 2023), its code; Yin et al.,
    "DeepInversion" (CVPR 2020).
    """
    check_weight(weight)

    def prior(view: View, candidate: Candidate, progress: Array) -> Array:
        del view, progress
        x = candidate.inputs
        differences = (
            x[:, 1:] - x[:, :-1],
            x[:, :, 1:] - x[:, :, :-1],
            x[:, 1:, 1:] - x[:, :-1, :-1],
            x[:, 1:, :-1] - x[:, :-1, 1:],
        )
        return weight * sum(root(jnp.sum(d**2)) for d in differences)

    return prior
