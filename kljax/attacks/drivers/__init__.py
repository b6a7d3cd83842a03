"""Drivers: the loops of searches.

A driver evaluates candidates, keeps the best by the attacker's own loss, and asks for
the next. `descend` follows gradients, `evolve` tries populations.
"""

from kljax.attacks.drivers.gradient import descend
from kljax.attacks.drivers.population import evolve

__all__ = ["descend", "evolve"]
