"""Drivers: the loops of searches.

A driver evaluates candidates, keeps the best by the attacker's own loss, and asks for
the next. `descend` follows gradients.
"""

from kljax.attacks.drivers.gradient import descend

__all__ = ["descend"]
