"""Priors: what the attacker believes about images before he sees a gradient."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kljax.attacks.attack import Candidate, Prior, Setting
from kljax.attacks.closed_form.dense import dense_input
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
    _check_weight(weight)

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
    _check_weight(weight)
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


def _check_weight(weight: float) -> None:
    if not weight >= 0:
        raise ValueError(f"weight must be >= 0, got {weight!r}")
