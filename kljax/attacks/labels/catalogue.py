"""Which rules of label recovery there are, by name."""

from collections.abc import Callable
from typing import TypeAlias

from kljax.attacks.labels import label_counts as counting
from kljax.attacks.labels import rules
from kljax.attacks.labels.conditions import CONDITIONS, pulls_the_true_class_alone
from kljax.attacks.setting import Setting
from kljax.core.registry import check_callable, resolve
from kljax.core.types import Array
from kljax.threat import View

Rule: TypeAlias = Callable[[Setting, View], Array]  # -> labels [B] int32

RULES: dict[str, Rule] = {
    "idlg": rules.idlg,
    "opposite_sign": rules.opposite_sign,
    "ggl": rules.ggl,
    "yin": rules.yin,
    "bias_corrected": rules.bias_corrected,
    "wainakh_simple": rules.wainakh_simple,
    "counts": counting.counts,
    "counts_bias": counting.counts_bias,
}
# Those that read the classifier's bias, and what to take where there is none.
OF_BIAS = {"bias_corrected": "yin", "counts_bias": "counts"}


OF_ONE_EXAMPLE = ("idlg", "opposite_sign")


def find_rule(setting: Setting) -> Rule:
    """Finds the rule that the setting names.

    Raises:
      ValueError: as `settle_rule`.
    """
    name = settle_rule(setting)
    return check_callable("label rule", name, resolve("label rule", name, RULES))


def rule_holds(setting: Setting, view: View) -> Array:
    """Tells [] bool whether what can be seen of the rule's conditions is so.

    The conditions of each rule are in `kljax.attacks.labels.CONDITIONS`.

    Raises:
      ValueError: as `settle_rule`, and for a rule of one's own, which states none.
    """
    name = settle_rule(setting)
    if name not in CONDITIONS:
        raise ValueError(f"label rule {name!r} states no conditions")
    seen = CONDITIONS[name].holds(setting, view)
    return seen & pulls_the_true_class_alone(setting)


def settle_rule(setting: Setting) -> str:
    """Names the rule of a setting: its own, or what ``auto`` is there.

    ``auto`` is ``idlg`` for one example, and ``opposite_sign`` where there is no bias:
    it is right for features of any sign, and reads the sums of ``idlg`` where it is
    not told. For several, up to one per class, it is
    ``bias_corrected`` of a gradient, and ``counts`` of an update whose protocol is
    known. Of gradients of untrained networks ``counts`` is better by up to 14 points,
    and of those of a trained LeNet ``yin`` is, from four examples on. For more it is
    ``yin``: never much worse than a guess of equally many per class, where all but
    ``ggl`` fall far below it on trained networks (experiments/labels.md; updates of
    fewer than 16 examples are not in it). It is also ``yin`` where ``bias_corrected``
    has no bias to read.

    Raises:
      ValueError: for targets that are no classes, an unknown rule, one of a single
        example for several, counts of an update without a protocol, a rule that reads
        the classifier's bias where there is none, and a classifier that has no column
        for each class.
    """
    name, knows = setting.attacker.label_rule, setting.threat.knowledge
    targets = setting.task.targets
    if targets.kind != "classes":
        raise ValueError(
            f"label rules read classes, and targets are {targets.kind} of shape "
            f"{targets.shape} here: take labels='given' or 'joint'"
        )
    updates = not setting.sees_gradient
    params, _ = setting.task.shapes()
    biased = f"{setting.task.classifier}/bias" in params
    if name == "auto" and knows.examples == 1:
        name = "idlg" if biased else "opposite_sign"
    elif name == "auto" and knows.examples > setting.task.num_classes:
        name = "yin"
    elif name == "auto":
        name = "counts" if updates else "bias_corrected" if biased else "yin"
    if ":" not in name and name not in RULES:
        legal = " or ".join(map(repr, ("auto", *RULES)))
        raise ValueError(
            f"label_rule must be {legal}, or package.module:function, got {name!r}"
        )
    columns = params[f"{setting.task.classifier}/kernel"].shape[-1]
    if columns != setting.task.num_classes or columns < 2:
        raise ValueError(
            f"labels are read off one column of the classifier per class: "
            f"{setting.task.classifier!r} has {columns} column(s) for "
            f"{setting.task.num_classes} classes; take labels='given' or 'joint'"
        )
    if name in OF_ONE_EXAMPLE and knows.examples != 1:
        raise ValueError(
            f"label rule {name!r} needs examples=1, got examples={knows.examples}; "
            "several take 'bias_corrected' or another rule"
        )
    if name.startswith("counts") and updates and setting.protocol is None:
        raise ValueError(
            f"label rule {name!r} needs the protocol of an update, and the setting has "
            "none"
        )
    if name in OF_BIAS and not biased:
        raise ValueError(
            f"label rule {name!r} reads the classifier's bias, and "
            f"{setting.task.classifier!r} has none: take {OF_BIAS[name]!r}"
        )
    return name
