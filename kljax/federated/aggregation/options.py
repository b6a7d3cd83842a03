"""Checks of the numbers that a rule of aggregation is made with."""

import math

from kljax.core.checks import shown, whole


def check_attackers(rule: str, attackers: int) -> None:
    """Refuses what is no number of attackers.

    Raises:
      ValueError: see above.
    """
    if not whole(attackers) or attackers < 1:
        raise ValueError(
            f"{rule} withstands a whole number of attackers >= 1, got "
            f"{shown(attackers)}"
        )


def check_bound(rule: str, bound: float, what: str = "bound") -> None:
    """Refuses what is no finite number above 0, such as a bound of a norm.

    Raises:
      ValueError: see above.
    """
    number = isinstance(bound, (int, float)) and not isinstance(bound, bool)
    if not number or not 0 < bound < math.inf:
        raise ValueError(f"{rule} needs a finite {what} > 0, got {shown(bound)}")
