"""Images of the right size, in the box, and near those of other restarts."""

import jax
import jax.numpy as jnp

from kljax.attacks.attack import RESTARTS, Candidate, Prior
from kljax.attacks.objectives import root
from kljax.attacks.priors.sums import check_weight
from kljax.core.types import Array
from kljax.threat import View


def image_norm(weight: float, *, per_pixel: bool = False) -> Prior:
    """Adds ``weight`` times the mean over images of ``|x|``, not squared.

    Args:
      weight: 0 or more.
      per_pixel: whether the norm is divided by H x W.

    Raises:
      ValueError: for a negative weight.

    Reference: Yin et al., "GradInversion" (CVPR 2021), equation 7; divided as in
    GIFD's code.
    """
    check_weight(weight)

    def prior(view: View, candidate: Candidate, progress: Array) -> Array:
        del view, progress
        return weight * _mean_norm(candidate.inputs, per_pixel)

    return prior


def box_violation(weight: float) -> Prior:
    """Adds ``weight *`` the squared way from an image to [0, 1], mean over the images.

    Raises:
      ValueError: for a negative weight.

    Reference: Dimitrov et al. 2022, code utils/flax_losses.py (clip_prior).
    """
    check_weight(weight)

    def prior(view: View, candidate: Candidate, progress: Array) -> Array:
        del view, progress
        images = candidate.inputs
        outside = images - jnp.clip(images, 0.0, 1.0)
        return weight * jnp.sum(outside**2) / images.shape[0]

    return prior


def group_consistency(weight: float, *, after: float, per_pixel: bool = True) -> Prior:
    """Draws each restart to the mean of all of them.

    For attacks of several restarts only: they meet on the axis `RESTARTS`. Examples
    are compared in their order, so labels should be the same in all restarts.

    Args:
      weight: of the mean over images of ``|x - mean|``, not squared.
      after: share of the steps made without it.
      per_pixel: whether the norm is divided by H x W.

    Raises:
      ValueError: for a negative weight.

    Reference: Yin et al., "GradInversion" (CVPR 2021), equation 11, without its
    registration; GIFD's code, which takes a new mean every 100 steps only.
    """
    check_weight(weight)

    def prior(view: View, candidate: Candidate, progress: Array) -> Array:
        del view
        others = jax.lax.stop_gradient(candidate.inputs)
        apart = candidate.inputs - jax.lax.pmean(others, RESTARTS)
        return weight * (progress >= after) * _mean_norm(apart, per_pixel)

    return prior


def _mean_norm(images: Array, per_pixel: bool) -> Array:
    norms = root(jnp.sum(images**2, axis=(1, 2, 3)))
    pixels = images.shape[1] * images.shape[2] if per_pixel else 1
    return jnp.mean(norms) / pixels
