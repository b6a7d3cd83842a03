"""Says how sure a rate or a mean over victims is.

Victims of one batch, client or trained model are not independent; they form a group
(cluster), and an interval that counts each as its own is too narrow. Letters: N values,
one per victim; G distinct groups. Runs on the host, in float64.

>>> round(wilson(5, 10).high, 4)
0.7634
>>> interval([1, 1, 0, 0], groups=["a", "a", "b", "b"], rate=True).method
'cluster_bootstrap'
"""

from typing import NamedTuple

import numpy as np
import scipy  # its modules are imported where they are first named
from numpy.typing import ArrayLike


class Interval(NamedTuple):
    """An estimate with its confidence interval.

    `method` is wilson, cluster_bootstrap, wilson_on_groups (a rate of which every value
    is the same; each group counted once) or none (the values do not tell how sure their
    mean is; low and high are NaN).
    """

    estimate: float
    low: float
    high: float
    method: str
    groups: int  # independent observations behind it: N for wilson, else G


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Gives Wilson's score interval for a rate of successes among n trials.

    Raises ValueError if n < 1, successes is not in 0..n, or confidence not in (0, 1).
    Reference: Wilson, JASA 1927; computed by `scipy.stats.binomtest`.
    """
    _check_confidence(confidence)
    if n < 1:
        raise ValueError(f"wilson: n is {n}; a rate needs at least one trial")
    if not 0 <= successes <= n:
        raise ValueError(f"wilson: successes is {successes}; it must lie in 0..{n}")
    test = scipy.stats.binomtest(int(successes), int(n))
    bounds = test.proportion_ci(confidence_level=confidence, method="wilson")
    return Interval(
        successes / n, float(bounds.low), float(bounds.high), "wilson", int(n)
    )


def cluster_bootstrap(
    values: ArrayLike,
    groups: ArrayLike,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Gives the percentile interval for the mean of values [N], resampling groups [N].

    Draws G groups with replacement, whole, and takes the mean over their values. The
    same seed gives the same interval.

    Edge cases:

    | case                            | result                                      |
    |---------------------------------|---------------------------------------------|
    | one group, or all groups have   | NaN, NaN, method none: the groups show no   |
    | the same mean                   | spread, and width 0 would claim certainty   |
    | below about 10 groups           | too narrow; the number of groups is returned |

    Raises ValueError if N is 0, lengths differ, or a value is not finite.
    Reference: Davison and Hinkley 1997, section 3.8; by `scipy.stats.bootstrap`.
    """
    _check_confidence(confidence)
    values, groups = _checked("cluster_bootstrap", values, groups)
    if resamples < 2:
        raise ValueError(
            f"cluster_bootstrap: resamples is {resamples}; one shows no spread, give "
            "at least 2"
        )
    names, members = np.unique(groups, return_inverse=True)
    count = len(names)
    estimate = float(values.mean())
    totals = np.bincount(members, weights=values, minlength=count)
    sizes = np.bincount(members, minlength=count).astype(np.float64)
    # One group has one mean. Differences of equal pairs are equal up to rounding.
    if np.allclose(totals / sizes, estimate, rtol=1e-9, atol=1e-15):
        return Interval(estimate, float("nan"), float("nan"), "none", count)
    bounds = scipy.stats.bootstrap(
        (totals, sizes),
        lambda total, size, axis: total.sum(axis=axis) / size.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(
        estimate, float(bounds.low), float(bounds.high), "cluster_bootstrap", count
    )


def interval(
    values: ArrayLike,
    groups: ArrayLike,
    *,
    rate: bool,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Gives the interval for the mean of values [N] that their groups [N] allow.

    Args:
      values: finite; 0 or 1 (or booleans) of a rate.
      groups: of the values.
      rate: whether a value says that something happened (1) or did not (0), and the
        mean is the rate of it. The numbers cannot tell: an SSIM may be 1, too.
      confidence: in (0, 1).
      resamples, seed: of the bootstrap.

    Returns:
      Of a rate: Wilson's interval if every value is its own group; Wilson's with each
      group as one trial if all values are the same. `cluster_bootstrap` otherwise.

    Raises:
      ValueError: for values of a rate that are neither 0 nor 1, and as
        `cluster_bootstrap`.
    """
    values, groups = _checked("interval", values, groups)
    if not rate:
        return cluster_bootstrap(values, groups, confidence, resamples, seed)
    others = int((~np.isin(values, (0.0, 1.0))).sum())
    if others:
        raise ValueError(
            f"interval: {others} of {len(values)} values are neither 0 nor 1, as those "
            "of a rate are; give rate=False"
        )
    count = len(np.unique(groups))
    if count == len(values):
        return wilson(int(values.sum()), len(values), confidence)
    if values.min() == values.max():
        bounds = wilson(int(values[0]) * count, count, confidence)
        return bounds._replace(method="wilson_on_groups")
    return cluster_bootstrap(values, groups, confidence, resamples, seed)


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must lie in (0, 1)")


def _checked(
    caller: str, values: ArrayLike, groups: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    values, groups = np.asarray(values, np.float64), np.asarray(groups)
    if values.ndim != 1 or values.shape != groups.shape:
        raise ValueError(
            f"{caller}: values {values.shape} and groups {groups.shape} must both be "
            "[N]"
        )
    if len(values) == 0:
        raise ValueError(f"{caller}: values has n = 0; an interval needs one value")
    broken = int((~np.isfinite(values)).sum())
    if broken:
        raise ValueError(
            f"{caller}: {broken} of {len(values)} values are not finite; leave them "
            "out and state how many"
        )
    return values, groups
