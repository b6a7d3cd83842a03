"""Sums of priors, and weights that fall."""

from kljax.attacks.attack import Candidate, Prior
from kljax.core.checks import is_concrete
from kljax.core.types import Array
from kljax.threat import View


def added(*priors: Prior) -> Prior:
    """Adds priors up."""

    def prior(view: View, candidate: Candidate, progress: Array) -> Array:
        return sum(one(view, candidate, progress) for one in priors)

    return prior


def scheduled(prior: Prior, end: float) -> Prior:
    """Lets the weight of a prior fall, geometrically, to `end` times what it was.

    Raises:
      ValueError: unless ``0 < end <= 1``.
    """
    if not 0 < end <= 1:
        raise ValueError(f"end must be above 0 and at most 1, got {end!r}")

    def falling(view: View, candidate: Candidate, progress: Array) -> Array:
        return end**progress * prior(view, candidate, progress)

    return falling


def check_weight(weight: float, name: str = "weight") -> None:
    """Refuses a negative weight, and NaN; one that is traced was looked at before."""
    if is_concrete(weight) and not weight >= 0:
        raise ValueError(f"{name} must be >= 0, got {weight!r}")
