"""Priors: what the attacker believes about images before it sees a gradient."""

from kljax.attacks.priors.classifier_input import feature, refuse_feature, with_feature
from kljax.attacks.priors.order import order_invariance, random_convolution
from kljax.attacks.priors.size import box_violation, group_consistency, image_norm
from kljax.attacks.priors.statistics import batch_statistics
from kljax.attacks.priors.sums import added, scheduled
from kljax.attacks.priors.variation import (
    cyclic_variation,
    diagonal_variation,
    mean_variation,
    squared_variation,
    total_variation,
)

__all__ = [
    "feature",
    "with_feature",
    "refuse_feature",
    "order_invariance",
    "random_convolution",
    "box_violation",
    "group_consistency",
    "image_norm",
    "batch_statistics",
    "added",
    "scheduled",
    "cyclic_variation",
    "diagonal_variation",
    "squared_variation",
    "total_variation",
    "mean_variation",
]
