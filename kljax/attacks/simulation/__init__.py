"""Simulations: the upload that a candidate would have given."""

from kljax.attacks.simulation.averages import of_each_client
from kljax.attacks.simulation.replays import VARIANTS, averaged_steps, epochs_of, fedavg
from kljax.attacks.simulation.steps import (
    local_steps,
    move_by_gradient,
    one_step,
    replay,
)
from kljax.attacks.simulation.surrogate import (
    SurrogateSimulation,
    closest_surrogate,
    surrogate_gradient,
)

__all__ = [
    "VARIANTS",
    "SurrogateSimulation",
    "averaged_steps",
    "closest_surrogate",
    "epochs_of",
    "fedavg",
    "local_steps",
    "move_by_gradient",
    "of_each_client",
    "one_step",
    "replay",
    "surrogate_gradient",
]
