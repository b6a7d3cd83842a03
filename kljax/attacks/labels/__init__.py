"""Labels: how the attacker comes to the labels of an upload.

The classifier sits above every lock, so what its gradient gives away it gives away
with and without a defence of the lower layers.
"""

from kljax.attacks.labels.catalogue import (
    RULES,
    Rule,
    find_rule,
    rule_holds,
    settle_rule,
)
from kljax.attacks.labels.classifier import ClassifierGrads, classifier_grads
from kljax.attacks.labels.conditions import CONDITIONS, Condition
from kljax.attacks.labels.label_counts import counts, counts_bias
from kljax.attacks.labels.rules import (
    bias_corrected,
    ggl,
    idlg,
    labels_of_counts,
    opposite_sign,
    or_unknown,
    wainakh_simple,
    yin,
)
from kljax.attacks.labels.strategies import (
    LABELS,
    given,
    joint,
    recovered,
    settled_labels,
    targets_of,
)

__all__ = [
    "CONDITIONS",
    "LABELS",
    "RULES",
    "Condition",
    "Rule",
    "ClassifierGrads",
    "bias_corrected",
    "classifier_grads",
    "counts",
    "counts_bias",
    "find_rule",
    "ggl",
    "given",
    "idlg",
    "joint",
    "opposite_sign",
    "recovered",
    "rule_holds",
    "settle_rule",
    "settled_labels",
    "labels_of_counts",
    "targets_of",
    "or_unknown",
    "wainakh_simple",
    "yin",
]
