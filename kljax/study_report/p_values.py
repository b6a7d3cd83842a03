"""p-values of paired successes: exact, of groups, and adjusted for their number."""

from collections.abc import Sequence

import numpy as np
from scipy import stats


def mcnemar(first: np.ndarray, second: np.ndarray, groups: np.ndarray) -> float:
    """Computes the exact p-value for equal rates of success on the same victims.

    McNemar's exact test where no group has more than one victim with unlike success.
    Otherwise victims of one group are not independent, and the same test takes groups
    for what is independent: under the hypothesis the difference of a whole group may
    have either sign, and p is the share of all choices of signs which give a sum as
    far from 0 as the one seen. For groups of one the two are the same.

    Args:
      first, second: [N] booleans, success of the same victims.
      groups: [N] of the victims.

    Returns:
      p in (0, 1], two-sided; 1 if no success is unlike.

    Reference: McNemar, Psychometrika 1947; by `scipy.stats.binomtest`.
    """
    differences = second.astype(int) - first.astype(int)
    _, members = np.unique(groups, return_inverse=True)
    sums = np.bincount(members, weights=differences).astype(int)
    sums = sums[sums != 0]
    if not len(sums):
        return 1.0
    if (np.abs(sums) == 1).all():
        return float(stats.binomtest(int((sums > 0).sum()), len(sums)).pvalue)
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
    before it, and at most 1. Reference: Holm, Scand. J. Statist. 1979.
    """
    adjusted = [0.0] * len(ps)
    least = 0.0
    for i, place in enumerate(sorted(range(len(ps)), key=lambda place: ps[place])):
        least = max(least, min(1.0, (len(ps) - i) * ps[place]))
        adjusted[place] = least
    return adjusted


def p_text(p: float) -> str:
    """Writes a p-value."""
    if p < 0.001:
        return "< .001"
    return f"{p:.3f}".removeprefix("0") if p < 1 else "1"
