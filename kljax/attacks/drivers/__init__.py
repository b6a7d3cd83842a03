"""Drivers: the loops of searches.

A driver evaluates candidates, keeps the best by the attacker's own loss, and asks for
the next. `descend` follows gradients, `evolve` tries populations, and
`descend_in_stages` follows gradients in one space after another. `descend_on_batches`
trains what an attacker learns before it sees an upload.
"""

from kljax.attacks.drivers.gradient import descend
from kljax.attacks.drivers.learning import descend_on_batches
from kljax.attacks.drivers.population import evolve
from kljax.attacks.drivers.staged import Stage, descend_in_stages, split_steps

__all__ = [
    "Stage",
    "descend",
    "descend_in_stages",
    "descend_on_batches",
    "evolve",
    "split_steps",
]
