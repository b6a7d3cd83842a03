"""The rules of aggregation by name."""

from collections.abc import Callable

from kljax.core.registry import make_named
from kljax.federated.aggregation.aggregator import Aggregator
from kljax.federated.aggregation.averaging import mean, norm_bounding
from kljax.federated.aggregation.boosting import fedboosting, fedboosting_accuracy
from kljax.federated.aggregation.central_point import geometric_median
from kljax.federated.aggregation.denoising import denoised_mean
from kljax.federated.aggregation.order_statistics import coordinate_median, trimmed_mean
from kljax.federated.aggregation.selection import krum, multi_krum
from kljax.federated.aggregation.trimmed_selection import bulyan
from kljax.federated.aggregation.trust import fltrust, foolsgold

AGGREGATORS: dict[str, Callable[..., Aggregator]] = {
    "mean": mean,
    "median": coordinate_median,
    "trimmed-mean": trimmed_mean,
    "geometric-median": geometric_median,
    "krum": krum,
    "multi-krum": multi_krum,
    "bulyan": bulyan,
    "norm-bounding": norm_bounding,
    "denoised-mean": denoised_mean,
    "foolsgold": foolsgold,
    "fltrust": fltrust,
    "fedboosting": fedboosting,
    "fedboosting-accuracy": fedboosting_accuracy,
}


def make_aggregator(text: str) -> Aggregator:
    """Makes a rule from its name and its numbers, such as ``trimmed-mean=2``.

    Args:
      text: ``NAME[=OPTIONS]``, as in `kljax.core.registry.make_named`; a name of
        `AGGREGATORS`, or ``package.module:function`` for a function of the numbers that
        gives an `Aggregator`.

    Raises:
      ValueError: for an unknown name, numbers that the rule does not take, and a
        function that gives something else.
    """
    made = make_named("aggregator", text, AGGREGATORS)
    if not isinstance(made, Aggregator):
        raise ValueError(
            f"aggregator {text!r} gave no kljax.federated.aggregation.Aggregator, but "
            f"{type(made).__name__}"
        )
    return made
