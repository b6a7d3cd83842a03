"""What a client does: its gradient, apart into what may leave and what may not."""

from kljax.federated.clients.earlier_uploads import recorded
from kljax.federated.clients.gradient import (
    STEP_PURPOSES,
    Gradient,
    local_gradient,
    one_step,
)
from kljax.federated.clients.local import (
    LOCAL_PURPOSES,
    ROUND_PURPOSES,
    Batches,
    ClientState,
    LocalOptimiser,
    LocalTraining,
    Progress,
    Remembered,
    Upload,
    all_finite,
    local_training,
    next_move,
)
from kljax.federated.clients.update import LocalUpdate, local_update

__all__ = [
    "STEP_PURPOSES",
    "Gradient",
    "local_gradient",
    "one_step",
    "recorded",
    "ROUND_PURPOSES",
    "LOCAL_PURPOSES",
    "Batches",
    "Remembered",
    "ClientState",
    "Upload",
    "Progress",
    "LocalTraining",
    "LocalOptimiser",
    "local_training",
    "all_finite",
    "next_move",
    "LocalUpdate",
    "local_update",
]
