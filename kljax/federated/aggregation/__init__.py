"""Aggregation: what a server makes of the uploads of a round.

A rule is an `Aggregator`; `AGGREGATORS` names those of kljax. Letters: n clients in a
round, F attackers among them that a rule is to withstand.
"""

from kljax.federated.aggregation.aggregator import (
    Aggregator,
    Evidence,
    Gathered,
    check_needs,
    find_needs,
)
from kljax.federated.aggregation.averaging import mean, norm_bounding
from kljax.federated.aggregation.boosting import (
    Validation,
    fedboost_weights,
    fedboosting,
    fedboosting_accuracy,
    mix_changes,
)
from kljax.federated.aggregation.catalogue import AGGREGATORS, make_aggregator
from kljax.federated.aggregation.central_point import geometric_median
from kljax.federated.aggregation.denoising import denoised_mean
from kljax.federated.aggregation.order_statistics import coordinate_median, trimmed_mean
from kljax.federated.aggregation.selection import krum, multi_krum
from kljax.federated.aggregation.trimmed_selection import bulyan
from kljax.federated.aggregation.trust import fltrust, foolsgold

__all__ = [
    "Aggregator",
    "Gathered",
    "Evidence",
    "check_needs",
    "find_needs",
    "AGGREGATORS",
    "make_aggregator",
    "mean",
    "norm_bounding",
    "denoised_mean",
    "coordinate_median",
    "trimmed_mean",
    "geometric_median",
    "krum",
    "multi_krum",
    "bulyan",
    "foolsgold",
    "fltrust",
    "fedboost_weights",
    "fedboosting",
    "fedboosting_accuracy",
    "Validation",
    "mix_changes",
]
