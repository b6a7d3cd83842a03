"""Priors: what the attacker believes about images before he sees a gradient."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kljax.attacks.attack import Candidate, Prior, Setting
from kljax.attacks.closed_form.dense import dense_input
from kljax.threat import View
from kljax.typing import Array, Output, Path, Stats


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
        out = _forward(
            setting,
            gates,
            view,
            view.stats,
            candidate,
            taps=(tap,),
            train=knowledge.attacker_norm == "train",
        )
        return weight * jnp.sum((out.taps[tap][0] - wanted) ** 2)

    return prior


def batch_statistics(
    setting: Setting, gates: Callable[..., Any], weight: float
) -> Prior:
    """Adds the squared distance of the batch's norm statistics to the uploaded ones.

    The upload has running statistics, which moved from the received ones towards the
    batch's; how far is read off the network, so no momentum need be known. Distances
    of means are in units of the uploaded standard deviation, those of variances in
    units of the uploaded variance, and averaged over channels and norm layers. A norm
    below a gate has statistics that no gate touches.

    Args:
      setting: the ground; its threat model must say ``stats=visible``.
      gates: ``(public, Candidate.lock) -> gates`` of the lock strategy.
      weight: 0 or more.

    Raises:
      ValueError: for a negative weight, hidden statistics, norms of the victim in eval
        mode, an update of several steps, or a network without batch norm.
    """
    _check_weight(weight)
    knowledge = setting.threat.knowledge
    for fact, needed in (
        ("stats", "visible"),
        ("victim_norm", "train"),
        ("upload", "gradient"),
    ):
        have = getattr(knowledge, fact)
        if have != needed:
            raise ValueError(
                f"batch_statistics needs {fact}={needed!r}, but the threat model says "
                f"{fact}={have!r}"
            )
    _, stats = jax.eval_shape(setting.model.init, jax.random.key(0))
    norms: tuple[Path, ...] = tuple(
        path.removesuffix("/mean")
        for path in stats
        if path.endswith("/mean") and f"{path.removesuffix('/mean')}/var" in stats
    )
    if not norms:
        raise ValueError(f"no running mean and var in the network: {sorted(stats)}")

    def prior(view: View, candidate: Candidate, progress: Array) -> Array:
        del progress

        def after(stats: Stats) -> Stats:
            return _forward(setting, gates, view, stats, candidate, train=True).stats

        ones = jax.tree.map(jnp.ones_like, view.stats)
        # Running statistics are affine in what they were: the slope is the momentum.
        found, momentum = jax.jvp(after, (view.stats,), (ones,))
        total = jnp.zeros(())
        for norm in norms:
            mean, var = f"{norm}/mean", f"{norm}/var"
            rate = {name: 1 - momentum[name] for name in (mean, var)}
            gap = {
                name: (found[name] - view.new_stats[name]) / rate[name]
                for name in (mean, var)
            }
            moved = view.new_stats[var] - momentum[var] * view.stats[var]
            unit = moved / rate[var] + 1e-5  # what the norm itself adds
            total += jnp.mean(gap[mean] ** 2 / unit + (gap[var] / unit) ** 2)
        return weight * total / len(norms)

    return prior


def _forward(
    setting: Setting,
    gates: Callable[..., Any],
    view: View,
    stats: Stats,
    candidate: Candidate,
    **options: Any,
) -> Output:
    return setting.model.apply(
        view.public.model,
        stats,
        candidate.images,
        gates=gates(view.public.defence, candidate.lock),
        rngs=jax.random.key(0),
        **options,
    )


def _check_weight(weight: float) -> None:
    if not weight >= 0:
        raise ValueError(f"weight must be >= 0, got {weight!r}")
