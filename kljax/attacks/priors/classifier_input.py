"""The classifier's input, which its gradient gives away."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kljax.attacks.attack import Candidate, Prior, no_prior
from kljax.attacks.closed_form.dense import dense_input
from kljax.attacks.priors.sums import added, check_weight
from kljax.attacks.setting import Setting
from kljax.core.randomness import fixed_rng
from kljax.core.types import Array
from kljax.threat import View


def feature(setting: Setting, gates: Callable[..., Any], weight: float) -> Prior:
    """Adds ``weight * |h(x) - h*|^2``, h being what the classifier is fed.

    For one example h* follows from the classifier's gradient in closed form, below
    any lock or not. A gradient of zeros in the classifier gives NaN. Where that
    gradient is hidden in part, the inputs that it still gives away are compared.

    Args:
      setting: of the attack; one example per gradient.
      gates: ``(public, Candidate.secret) -> gates`` of the secret's strategy.
      weight: 0 or more.

    Raises:
      ValueError: for a negative weight, several examples, an update of several steps,
        or a classifier without a bias.

    Reference: breaching (Geiping et al.), its feature regulariser.
    """
    check_weight(weight)
    knowledge = setting.threat.knowledge
    if (knowledge.examples, knowledge.upload) != (1, "gradient"):
        raise ValueError(
            "the classifier's input is exact for one example in the gradient of one "
            f"step, the threat model says examples={knowledge.examples} and "
            f"upload={knowledge.upload!r}"
        )
    params, _ = setting.task.shapes()
    kernel, bias = (f"{setting.task.classifier}/{name}" for name in ("kernel", "bias"))
    if bias not in params:
        raise ValueError(
            f"classifier {setting.task.classifier!r} has no bias to divide by"
        )
    tap = f"{setting.task.classifier}:input"

    def prior(view: View, candidate: Candidate, progress: Array) -> Array:
        del progress
        partly = view.visible is not None
        sent = view.grads.model
        wanted = dense_input(sent[kernel], sent[bias], partly=partly)
        out = setting.task.model.apply(
            view.public.model,
            view.stats,
            candidate.inputs,
            gates=gates(view.public.defence, candidate.secret),
            taps=(tap,),
            train=knowledge.attacker_norm == "train",
            # The victim's dropout masks are unknown: one fixed guess.
            rngs=jax.random.fold_in(fixed_rng("dropout"), 0),
        )
        fed = out.taps[tap][0]
        if partly:
            # In place of the target, so that no derivative meets NaN.
            wanted = jnp.where(jnp.isnan(wanted), jax.lax.stop_gradient(fed), wanted)
        return weight * jnp.sum((fed - wanted) ** 2)

    return prior


def with_feature(setting: Setting, gates: Callable[..., Any], *priors: Prior) -> Prior:
    """Adds up an attack's own priors, and `feature` if the setting gives it a weight.

    Args:
      setting: its ``features`` is the weight.
      gates: of the secret's strategy.
      priors: the attack's own.

    Raises:
      ValueError: as `feature`, where there is a weight.
    """
    if setting.attacker.features:
        priors = (*priors, feature(setting, gates, setting.attacker.features))
    return added(*priors) if priors else no_prior


def refuse_feature(setting: Setting, attack: str) -> None:
    """Refuses a weight where there is no objective to add a term to."""
    if setting.attacker.features:
        raise ValueError(
            f"{attack} has no objective that features={setting.attacker.features!r} "
            "could be a term of: leave it out"
        )
