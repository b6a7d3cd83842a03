"""kljax: what shared gradients give away, and what a key-lock changes.

In the order of the story: a network becomes a `Model`; a key-lock or another defence
protects a client; clients train it together, round by round; a threat model says what
crosses the wire; an attack makes images of it. `train` and `leak` do all of that for
many clients and many victims, and say what it was worth.
"""

from kljax import (
    attacks,
    data,
    defences,
    evaluation,
    losses,
    metrics,
    studies,
    study_report,
)
from kljax.algorithms import fedavg, fedkl, fedprox
from kljax.clients import Batches, local_training
from kljax.config import LeakConfig, TrainConfig
from kljax.engine import sweep
from kljax.keylock import KeyLock, key_lock
from kljax.leakage import LeakResult, leak
from kljax.mapping import Layout, map_victims, sum_clients
from kljax.models import (
    VGG,
    Dense,
    LeNet,
    Network,
    ResNet,
    from_nnx,
    normalised,
    site_widths,
)
from kljax.rounds import Rounds, federated_rounds
from kljax.scoring import floor_images, score_rows
from kljax.surgery import find_sites
from kljax.threat import (
    Knowledge,
    Strategy,
    ThreatModel,
    Update,
    View,
    least_knowledge,
    observe,
)
from kljax.training import TrainResult, train
from kljax.typing import Gate, Model, Output, Private, Public

__all__ = [
    # Networks
    "Model",
    "Output",
    "from_nnx",
    "Network",
    "LeNet",
    "ResNet",
    "VGG",
    "Dense",
    "normalised",
    # The lock, and other defences
    "find_sites",
    "site_widths",
    "Gate",
    "KeyLock",
    "key_lock",
    "defences",
    "losses",
    "Public",
    "Private",
    # Federated training
    "Batches",
    "local_training",
    "Rounds",
    "federated_rounds",
    "fedavg",
    "fedprox",
    "fedkl",
    "evaluation",
    "TrainConfig",
    "TrainResult",
    "train",
    # The wall
    "Knowledge",
    "Strategy",
    "ThreatModel",
    "least_knowledge",
    "Update",
    "View",
    "observe",
    # The attack
    "attacks",
    "Layout",
    "map_victims",
    "sum_clients",
    # The main job
    "data",
    "LeakConfig",
    "LeakResult",
    "leak",
    "score_rows",
    "floor_images",
    "metrics",
    # Many of them
    "sweep",
    "studies",
    "study_report",
]
