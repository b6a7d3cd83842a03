"""Priors: what the attacker believes about images before he sees a gradient."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kljax.attacks.attack import RESTARTS, Candidate, Prior, Setting
from kljax.attacks.closed_form.dense import dense_input
from kljax.attacks.objectives import root
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
    _check(weight)

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


def scheduled(prior: Prior, end: float) -> Prior:
    """Lets the weight of a prior fall, geometrically, to `end` times what it was.

    Raises:
      ValueError: unless ``0 < end <= 1``.
    """
    if not 0 < end <= 1:
        raise ValueError(f"end must be above 0 and at most 1, got {end!r}")

    def falling(view: View, candidate: Candidate, progress: Array) -> Array:
        return end**progress * prior(view, candidate, progress)

    return falling


def feature(setting: Setting, gates: Callable[..., Any], weight: float) -> Prior:
    """Adds ``weight * |h(x) - h*|^2``, h being what the classifier is fed.

    For one example h* follows from the classifier's gradient in closed form, below
    any lock or not. A gradient of zeros in the classifier gives NaN.

    Args:
      setting: the ground; one example per gradient.
      gates: ``(public, Candidate.lock) -> gates`` of the lock strategy.
      weight: 0 or more.

    Raises:
      ValueError: for a negative weight, several examples, an update of several steps,
        or a classifier without a bias.

    Reference: breaching (Geiping et al.), its feature regulariser.
    """
    _check(weight)
    knowledge = setting.threat.knowledge
    if (knowledge.examples, knowledge.upload) != (1, "gradient"):
        raise ValueError(
            "the classifier's input is exact for one example in the gradient of one "
            f"step, the threat model says examples={knowledge.examples} and "
            f"upload={knowledge.upload!r}"
        )
    params, _ = jax.eval_shape(setting.model.init, jax.random.key(0))
    kernel, bias = (f"{setting.classifier}/{name}" for name in ("kernel", "bias"))
    if bias not in params:
        raise ValueError(f"classifier {setting.classifier!r} has no bias to divide by")
    tap = f"{setting.classifier}:input"

    def prior(view: View, candidate: Candidate, progress: Array) -> Array:
        del progress
        wanted = dense_input(view.grads.model[kernel], view.grads.model[bias])
        out = setting.model.apply(
            view.public.model,
            view.stats,
            candidate.images,
            gates=gates(view.public.defence, candidate.lock),
            taps=(tap,),
            train=knowledge.attacker_norm == "train",
            # The victim's dropout masks are unknown: one fixed guess.
            rngs=jax.random.key(0),
        )
        return weight * jnp.sum((out.taps[tap][0] - wanted) ** 2)

    return prior


def added(*priors: Prior) -> Prior:
    """Adds priors up."""

    def prior(view: View, candidate: Candidate, progress: Array) -> Array:
        return sum(one(view, candidate, progress) for one in priors)

    return prior


def squared_variation(weight: float) -> Prior:
    """Adds ``2 weight (mean dx^2 + mean dy^2)`` of the images.

    Reference: GRNN (Ren, Deng, Xie 2022), its code: both sums are divided by the
    number of their differences and of the images, and their sum is doubled.
    """
    _check(weight)

    def prior(view: View, candidate: Candidate, progress: Array) -> Array:
        del view, progress
        rows, columns = (jnp.diff(candidate.images, axis=axis) for axis in (1, 2))
        return 2 * weight * (jnp.mean(rows**2) + jnp.mean(columns**2))

    return prior


def diagonal_variation(weight: float) -> Prior:
    """Adds the norms of the images' differences along four directions.

    Rows, columns and both diagonals; each norm is over all images at once, not
    squared.

    Reference: Hatamizadeh et al. (IEEE TMI 2023), its code; Yin et al.,
    "DeepInversion" (CVPR 2020).
    """
    _check(weight)

    def prior(view: View, candidate: Candidate, progress: Array) -> Array:
        del view, progress
        x = candidate.images
        differences = (
            x[:, 1:] - x[:, :-1],
            x[:, :, 1:] - x[:, :, :-1],
            x[:, 1:, 1:] - x[:, :-1, :-1],
            x[:, 1:, :-1] - x[:, :-1, 1:],
        )
        return weight * sum(root(jnp.sum(d**2)) for d in differences)

    return prior


def image_norm(weight: float, *, per_pixel: bool = False) -> Prior:
    """Adds ``weight`` times the mean over images of ``|x|``, not squared.

    Args:
      weight: 0 or more.
      per_pixel: whether the norm is divided by H x W.

    Reference: Yin et al., "GradInversion" (CVPR 2021), equation 7; divided as in
    GIFD's code.
    """
    _check(weight)

    def prior(view: View, candidate: Candidate, progress: Array) -> Array:
        del view, progress
        return weight * _mean_norm(candidate.images, per_pixel)

    return prior


def group_consistency(weight: float, *, after: float, per_pixel: bool = True) -> Prior:
    """Draws each restart to the mean of all of them.

    For attacks of several restarts only: they meet on the axis `RESTARTS`. Examples
    are compared in their order, so labels should be the same in all restarts.

    Args:
      weight: of the mean over images of ``|x - mean|``, not squared.
      after: share of the steps made without it.
      per_pixel: whether the norm is divided by H x W.

    Reference: Yin et al., "GradInversion" (CVPR 2021), equation 11, without its
    registration; GIFD's code, which takes a new mean every 100 steps only.
    """
    _check(weight)

    def prior(view: View, candidate: Candidate, progress: Array) -> Array:
        del view
        others = jax.lax.stop_gradient(candidate.images)
        apart = candidate.images - jax.lax.pmean(others, RESTARTS)
        return weight * (progress >= after) * _mean_norm(apart, per_pixel)

    return prior


def _mean_norm(images: Array, per_pixel: bool) -> Array:
    norms = root(jnp.sum(images**2, axis=(1, 2, 3)))
    pixels = images.shape[1] * images.shape[2] if per_pixel else 1
    return jnp.mean(norms) / pixels


def _check(weight: float) -> None:
    if not weight >= 0:
        raise ValueError(f"weight must be >= 0, got {weight!r}")
