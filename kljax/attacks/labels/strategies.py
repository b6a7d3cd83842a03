"""Strategies: how the attacker comes to the labels, as an unknown of the attack.

One factory per strategy of `kljax.threat.LABEL_STRATEGIES`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from kljax.attacks.attack import Unknown
from kljax.attacks.labels.catalogue import find_rule
from kljax.attacks.setting import Setting
from kljax.core.types import Array, PyTree, Rng
from kljax.threat import View


def given(setting: Setting) -> Unknown:
    """Takes the labels from the view, where the threat model grants them."""
    return Unknown(
        start=lambda rng, view: ((), view.targets),
        decode=lambda free, fixed: fixed,
        read=_read(setting),
    )


def recovered(setting: Setting) -> Unknown:
    """Recovers the labels in closed form first, by the setting's rule; keeps them.

    Where the rule is told nothing the targets are NaN, and so is the attack's loss: it
    reports a failure instead of searching for images of some class.

    No rule knows their order. Within one step of one client it has no meaning; over
    several batches, or clients, it has, so there each restart takes the labels in a
    random order of its own.

    Raises:
      ValueError: for a rule that does not fit the upload, see `find_rule`.
    """
    rule, protocol = find_rule(setting), setting.protocol
    knows = setting.threat.knowledge
    ordered = knows.clients > 1 or (
        protocol is not None and protocol.batch < knows.examples
    )

    def start(rng, view: View):
        labels = rule(setting, view)
        if ordered:
            labels = jax.random.permutation(rng, labels)
        return (), targets_of(labels, setting.task.num_classes)

    return Unknown(start, decode=lambda free, fixed: fixed, read=_read(setting))


def targets_of(labels: Array, num_classes: int) -> Array:
    """Makes one-hot targets [B, Kc] of labels [B]; of `UNKNOWN` ones, NaN."""
    known = (labels >= 0)[:, None]
    return jnp.where(known, jax.nn.one_hot(labels, num_classes), jnp.nan)


def joint(setting: Setting) -> Unknown:
    """Optimises label logits together with the image, started from N(0, 1).

    Targets that are no probabilities are optimised as they are.

    Reference: DLG (Zhu et al. 2019), algorithm 1.
    """
    targets = setting.task.targets
    shape = (setting.threat.knowledge.examples, *targets.shape)
    return Unknown(
        start=lambda rng, view: (jax.random.normal(rng, shape), ()),
        decode=lambda free, fixed: targets.constrain(free),
        read=_read(setting),
    )


def _read(setting: Setting) -> Callable[[Array, PyTree], Array]:
    """Makes what reads targets as a dataset has them."""
    return lambda targets, fixed: setting.task.targets.decode(targets)


def settled_labels(setting: Setting, attack: str) -> Callable[[Rng, View], Array]:
    """Makes ``(rng, view) -> labels [B]`` for an attack that searches for nothing.

    Raises:
      ValueError: for the strategy ``joint``, which optimises them.
    """
    strategy = setting.threat.strategy.labels
    if strategy == "joint":
        raise ValueError(
            f"{attack} is a closed form, and label strategy 'joint' optimises: write "
            "'recovered' or 'given'"
        )
    unknown = LABELS[strategy](setting)

    def labels(rng: Rng, view: View) -> Array:
        free, fixed = unknown.start(rng, view)
        return unknown.read(unknown.decode(free, fixed), fixed)

    return labels


LABELS = {"given": given, "joint": joint, "recovered": recovered}
