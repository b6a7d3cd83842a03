"""Which rules of label recovery there are, by name."""

from collections.abc import Callable
from typing import TypeAlias

from kljax.attacks.attack import Setting
from kljax.attacks.labels import counts as counting
from kljax.attacks.labels import rules
from kljax.threat import View
from kljax.typing import Array

Rule: TypeAlias = Callable[[Setting, View], Array]  # -> labels [B] int32

RULES: dict[str, Rule] = {
    "idlg": rules.idlg,
    "ggl": rules.ggl,
    "yin": rules.yin,
    "bias_corrected": rules.bias_corrected,
    "wainakh_simple": rules.wainakh_simple,
    "counts": counting.counts,
    "counts_bias": counting.counts_bias,
}
# Those that read the classifier's bias, and what to take where there is none.
OF_BIAS = {"bias_corrected": "yin", "counts_bias": "counts"}


def find_rule(setting: Setting) -> Rule:
    """Finds the rule that the setting names.

    ``auto`` is ``idlg`` for one example. For several, up to one per class, it is
    ``bias_corrected`` of a gradient, and ``counts`` of an update whose protocol is
    known. Of gradients of untrained networks ``counts`` is better by up to 14 points,
    and of those of a trained LeNet ``yin`` is, from four examples on. For more it is
    ``yin``: never much worse than a guess of equally many per class, where all but
    ``ggl`` fall far below it on trained networks (experiments/labels.md; updates of
    fewer than 16 examples are not in it). It is also ``yin`` where ``bias_corrected``
    has no bias to read.

    Raises:
      ValueError: for an unknown rule, ``idlg`` for several examples, counts of an
        update without a protocol, and a rule that reads the classifier's bias where
        there is none.
    """
    name, knows = setting.label_rule, setting.threat.knowledge
    updates = knows.upload != "gradient"
    params, _ = setting.shapes()
    biased = f"{setting.classifier}/bias" in params
    if name == "auto" and knows.examples == 1:
        name = "idlg"
    elif name == "auto" and knows.examples > setting.num_classes:
        name = "yin"
    elif name == "auto":
        name = "counts" if updates else "bias_corrected" if biased else "yin"
    if name not in RULES:
        legal = " or ".join(map(repr, ("auto", *RULES)))
        raise ValueError(f"label_rule must be {legal}, got {name!r}")
    if name == "idlg" and knows.examples != 1:
        raise ValueError(
            f"label rule 'idlg' needs examples=1, got examples={knows.examples}; "
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
            f"{setting.classifier!r} has none: take {OF_BIAS[name]!r}"
        )
    return RULES[name]
