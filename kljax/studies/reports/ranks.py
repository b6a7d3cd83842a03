"""Ranks with intervals: who leaks less on the same victims, and where that is open.

Letters: I items on the same N victims, which fall into G groups.
"""

from typing import NamedTuple

import numpy as np

RESAMPLES = 2000
# Of the resamples: then the 95 % interval of a paired difference is on one side of 0.
SURE = 0.975


class Ranks(NamedTuple):
    """The ranks of I items that the victims leave open; the first leaks least.

    Attributes:
      low: [I] 1, and the number of items that surely leak less.
      high: [I] I, less the number of items that surely leak more.
      mean_low, mean_high: [I] between which the mean leakage of each lies, on these
        victims.
    """

    low: np.ndarray
    high: np.ndarray
    mean_low: np.ndarray
    mean_high: np.ndarray

    def text(self, item: int) -> str:
        """Writes the rank of an item: ``3``, or ``2-5``."""
        low, high = int(self.low[item]), int(self.high[item])
        return str(low) if low == high else f"{low}-{high}"


def rank(
    least: list[np.ndarray],
    most: list[np.ndarray],
    groups: np.ndarray,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Ranks:
    """Ranks items by how little they leak, by a paired bootstrap over groups.

    Each item has attackers, and its leakage is that of the attacker with the highest
    mean, chosen anew in each resample. An item surely leaks less than another if the
    most that it may leak is below the least of the other in `SURE` of the resamples.
    Items that are alike are told apart by none of them: their ranks are the same
    interval. The pairs are not adjusted for their number, and below about 10 groups a
    bootstrap is too narrow.

    Args:
      least: of each item [A, N], what each of its A attackers gets at least.
      most: of each item [A, N], what each may get, least <= most.
      groups: [N] of the victims, which are drawn whole.
      resamples: of the bootstrap.
      seed: of the bootstrap.

    Raises:
      ValueError: for no item, no victim, values that are not finite, and items of other
        victims.
    """
    count = len(groups)
    if not least or not count:
        raise ValueError(f"rank: {len(least)} items on {count} victims; give some")
    for name, values in (("least", least), ("most", most)):
        for number, value in enumerate(values):
            if value.ndim != 2 or value.shape[1] != count or not len(value):
                raise ValueError(
                    f"rank: {name} of item {number} is {value.shape}; it must be "
                    f"[A, {count}]"
                )
            if not np.isfinite(value).all():
                raise ValueError(f"rank: {name} of item {number} is not finite")
    names, members = np.unique(groups, return_inverse=True)
    sizes = np.bincount(members).astype(float)
    drawn = np.random.default_rng(seed).multinomial(
        len(names), np.full(len(names), 1 / len(names)), size=resamples
    )

    def highest(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
        totals = np.stack([np.bincount(members, weights=row) for row in values])
        return (weights @ totals.T / (weights @ sizes)[:, None]).max(axis=1)

    low, high = (
        np.stack([highest(value, drawn) for value in values])
        for values in (least, most)
    )  # [I, R]
    surely_below = (high[:, None] < low[None]).mean(axis=2) >= SURE
    once = np.ones((1, len(names)))
    return Ranks(
        1 + surely_below.sum(axis=0),
        len(least) - surely_below.sum(axis=1),
        np.array([highest(value, once)[0] for value in least]),
        np.array([highest(value, once)[0] for value in most]),
    )
