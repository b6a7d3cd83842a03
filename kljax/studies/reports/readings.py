"""Readings: which way paired differences point, in words that claim no more."""

import math
from collections.abc import Mapping

from kljax.metrics import Interval

NOT_KNOWN = None


def direction(difference: Interval) -> int | None:
    """Tells the sign of a difference; 0 if its interval holds 0, None without one."""
    if not math.isfinite(difference.low) or not math.isfinite(difference.high):
        return NOT_KNOWN
    return int(difference.low > 0) - int(difference.high < 0)


def read_differences(
    differences: Mapping[str, Interval], words: Mapping[int | None, str]
) -> str:
    """Words which way differences of several scores of the same pairs point.

    Scores that point one way are worded at once, and so is a direction of some scores
    where the others are not known. Otherwise each is worded by its name, so that no
    score hides another.

    Args:
      differences: name of the score -> its mean paired difference; one at least.
      words: of 1, -1, 0 and None, see `direction`.
    """
    directions = {
        name: direction(difference) for name, difference in differences.items()
    }
    known = set(directions.values()) - {NOT_KNOWN}
    if len(known) == 1 and (known != {0} or len(set(directions.values())) == 1):
        return words[known.pop()]
    if not known:
        return words[NOT_KNOWN]
    return "; ".join(f"{name}: {words[sign]}" for name, sign in directions.items())
