"""Conditions: when a rule of label recovery can be believed, as far as can be seen.

Each is ``(Setting, View) -> [] bool``. All rules expect cross-entropy with one-hot
targets, or a loss like it (`pulls_the_true_class_alone`). No truth is looked at: a
label can be wrong where a condition holds, and right where it fails. Of a gradient
that is hidden in part no condition on its signs holds.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from kljax.attacks.labels.classifier import classifier_grads
from kljax.attacks.labels.rules import columns_of_one_sign, columns_unlike_all_others
from kljax.attacks.setting import Setting
from kljax.core.randomness import fixed_rng
from kljax.core.types import Array, Loss, Private
from kljax.threat import View

PROBES = 100  # inputs from N(0, 1) on which features are looked at


class Condition(NamedTuple):
    """What a rule expects.

    Attributes:
      text: in words.
      holds: ``(Setting, View) -> []``, whether what can be seen of it is so.
    """

    text: str
    holds: Callable[[Setting, View], Array]


Test: TypeAlias = Callable[[Setting, View], Array]


def one_label_is_told(setting: Setting, view: View) -> Array:
    """Tells whether the sign of the classifier's gradient singles one class out.

    By the bias: exactly one entry is negative. Without a bias: one column has a
    negative sum, and every column is of one sign, as features of one sign make it.
    """
    grads = classifier_grads(setting, view)
    if grads.bias is not None:
        return (jnp.sum(grads.bias < 0) == 1) & ~jnp.any(jnp.isnan(grads.bias))
    one = jnp.sum(jnp.sum(grads.kernel, axis=0) < 0) == 1
    return one & columns_of_one_sign(grads.kernel)


def one_column_differs(setting: Setting, view: View) -> Array:
    """Tells whether exactly one column differs in sign from all others.

    Two columns alone differ from each other; features of one sign then tell.
    """
    kernel = classifier_grads(setting, view).kernel
    unlike = jnp.sum(columns_unlike_all_others(kernel)) == 1
    return unlike | one_label_is_told(setting, view)


def labels_can_differ(setting: Setting, view: View) -> Array:
    """Tells whether there are as many classes as examples."""
    del view
    return jnp.asarray(setting.threat.knowledge.examples <= setting.task.num_classes)


def few_classes_pull(setting: Setting, view: View) -> Array:
    """Tells whether 1 to B classes are pulled down: one that is not there never is."""
    grads = classifier_grads(setting, view)
    score = jnp.sum(grads.kernel, axis=0) if grads.bias is None else grads.bias
    pulled, hidden = jnp.sum(score < 0), jnp.any(jnp.isnan(score))
    return (pulled >= 1) & (pulled <= setting.threat.knowledge.examples) & ~hidden


def a_class_pulls(setting: Setting, view: View) -> Array:
    """Tells whether a class is pulled down, by the whole bias gradient."""
    bias = classifier_grads(setting, view).bias
    return jnp.any(bias < 0) & ~jnp.any(jnp.isnan(bias))


def features_are_nowhere_negative(setting: Setting, view: View) -> Array:
    """Tells whether the classifier is fed nothing negative, on noise from N(0, 1).

    Gates that are hidden are left out of the network, for the attacker does not have
    them; what a defence has in it publicly is there.
    """
    tap = f"{setting.task.classifier}:input"
    # Rules take no random key: everybody looks at the same noise.
    rng_images, rng_masks = jax.random.split(fixed_rng("feature signs"))
    out = setting.task.model.apply(
        view.public.model,
        view.stats,
        setting.task.inputs.draw(rng_images, PROBES),
        gates=setting.defence.gates(view.public.defence, Private()),
        taps=(tap,),
        train=setting.threat.knowledge.attacker_norm == "train",
        rngs=rng_masks,
    )
    return jnp.all(out.taps[tap] >= 0)


def pulls_the_true_class_alone(setting: Setting) -> bool:
    """Tells whether the loss rises with every logit but the true class's.

    Checked on a few logits, at the time of tracing; the network is not asked.
    """
    return _pulls_the_true_class_alone(setting.task.loss, setting.task.num_classes)


@functools.lru_cache(maxsize=16)
def _pulls_the_true_class_alone(loss: Loss, classes: int) -> bool:
    def pulls() -> Array:
        rng = fixed_rng("slopes of the loss")
        logits = jax.random.normal(rng, (classes, classes))
        targets = jnp.eye(classes)
        slopes = jax.grad(lambda x: jnp.sum(loss(x, targets)))(logits)
        true = jnp.diagonal(slopes)
        others = jnp.where(targets == 1, jnp.inf, slopes)
        return jnp.all(true < 0) & (jnp.all(others >= 0))

    # Outside of what is being traced: one program, and not one for each operation.
    with jax.core.eval_context():
        return bool(jax.jit(pulls)())


def all_of(*tests: Test) -> Test:
    """Joins conditions."""

    def holds(setting: Setting, view: View) -> Array:
        return jnp.all(jnp.stack([test(setting, view) for test in tests]))

    return holds


_UNSIGNED = "features that are nowhere negative"
_DISTINCT = "labels that all differ"
_FEW = "at most as many classes with a negative gradient as examples"
CONDITIONS: dict[str, Condition] = {
    "idlg": Condition(
        f"one negative entry of the bias gradient; without a bias, {_UNSIGNED}",
        one_label_is_told,
    ),
    "opposite_sign": Condition(
        "one column of the weight gradient that differs in sign from all others, of "
        f"which there are two at least; or {_UNSIGNED}",
        one_column_differs,
    ),
    "ggl": Condition(
        f"{_UNSIGNED}, and {_DISTINCT}",
        all_of(labels_can_differ, features_are_nowhere_negative),
    ),
    "yin": Condition(
        f"{_UNSIGNED}, and {_DISTINCT}",
        all_of(labels_can_differ, features_are_nowhere_negative),
    ),
    "bias_corrected": Condition(_FEW, few_classes_pull),
    "wainakh_simple": Condition(
        f"{_UNSIGNED}, and {_FEW}",
        all_of(few_classes_pull, features_are_nowhere_negative),
    ),
    "counts": Condition(
        f"{_UNSIGNED}, and a network that says on noise what it says on images (not "
        "checked)",
        features_are_nowhere_negative,
    ),
    "counts_bias": Condition(
        "a network that says on noise what it says on images (not checked), and at "
        "least one negative entry of the bias gradient",
        a_class_pulls,
    ),
}
