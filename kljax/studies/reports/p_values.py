"""p-values of paired scores: of groups, and adjusted for their number."""

import math
from collections.abc import Sequence

import numpy as np
import scipy  # its modules are imported where they are first named

FLIPS = 9999  # choices of signs that are drawn where there are more


def mcnemar(first: np.ndarray, second: np.ndarray, groups: np.ndarray) -> float:
    """Computes the exact p-value for equal rates of success on the same victims.

    McNemar's exact test where no group has more than one victim with unlike success,
    and `sign_flips` otherwise: for groups of one the two are the same.

    Args:
      first, second: [N] booleans, success of the same victims.
      groups: [N] of the victims.

    Returns:
      p in (0, 1], two-sided; 1 if no success is unlike.

    Reference: McNemar, Psychometrika 1947; by `scipy.stats.binomtest`.
    """
    return sign_flips(second.astype(int) - first.astype(int), groups)


def sign_flips(differences: np.ndarray, groups: np.ndarray) -> float:
    """Computes the p-value for equal scores on the same victims.

    Victims of one group are not independent, so that groups are what is independent:
    under the hypothesis the difference of a whole group may have either sign, and p is
    the share of all choices of signs which give a sum as far from 0 as the one seen.
    It is exact for rates and for few groups, 13 at most; for more, `FLIPS` choices are
    drawn, always the same.

    Args:
      differences: [N] of the scores; those that are not finite are left out.
      groups: [N] of the victims.

    Returns:
      p in (0, 1], two-sided; 1 if no difference is unlike 0, NaN if none is finite.

    Reference: Pitman, Suppl. J. R. Stat. Soc. 1937; by `scipy.stats.permutation_test`.
    """
    finite = np.isfinite(differences)
    differences, groups = differences[finite], groups[finite]
    if not len(differences):
        return float("nan")
    _, members = np.unique(groups, return_inverse=True)
    sums = np.bincount(members, weights=differences)
    sums = sums[sums != 0]
    if len(sums) < 2:  # the one has the same distance with either sign
        return 1.0
    if (sums == sums.round()).all() and np.abs(sums).max() <= len(differences):
        return _of_whole_numbers(sums.astype(int))
    test = scipy.stats.permutation_test(
        (sums,),
        lambda kept, axis: kept.sum(axis=axis),
        permutation_type="samples",  # of one sample: signs
        vectorized=True,
        n_resamples=FLIPS,
        batch=FLIPS,
        rng=np.random.default_rng(0),
    )
    return float(test.pvalue)


def _of_whole_numbers(sums: np.ndarray) -> float:
    if (np.abs(sums) == 1).all():
        return float(scipy.stats.binomtest(int((sums > 0).sum()), len(sums)).pvalue)
    sizes = np.abs(sums)
    # chances[k]: that the signs add up to k - sizes.sum().
    chances = np.ones(1)
    for size in sizes:
        step = np.zeros(2 * size + 1)
        step[[0, -1]] = 0.5
        chances = np.convolve(chances, step)
    distance = np.abs(np.arange(len(chances)) - sizes.sum())
    return float(min(1.0, chances[distance >= abs(sums.sum())].sum()))


def holm(ps: Sequence[float]) -> list[float]:
    """Adjusts p-values for their number by Holm's method.

    The i-th smallest of m, from 0, is multiplied by m - i, is no smaller than the ones
    before it, and at most 1. A p-value that is not known stays NaN and counts as 1.
    Reference: Holm, Scand. J. Statist. 1979.
    """
    if any(map(math.isnan, ps)):
        adjusted = holm([1.0 if math.isnan(p) else p for p in ps])
        return [p if math.isnan(p) else a for p, a in zip(ps, adjusted, strict=True)]
    adjusted = [0.0] * len(ps)
    least = 0.0
    for i, place in enumerate(sorted(range(len(ps)), key=lambda place: ps[place])):
        least = max(least, min(1.0, (len(ps) - i) * ps[place]))
        adjusted[place] = least
    return adjusted


def p_text(p: float) -> str:
    """Writes a p-value; ``-`` for one that is not known."""
    if math.isnan(p):
        return "-"
    if p < 0.001:
        return "< .001"
    return f"{p:.3f}".removeprefix("0") if p < 1 else "1"
