"""kljax: what shared gradients give away, and what a key-lock changes.

A network becomes a `Model`; a key-lock or another defence
protects a client; clients train it together, round by round; a threat model says what
crosses the wire; an attack makes images of it. `train` and `leak` do all of that for
many clients and many victims, and say what it was worth.
"""

from kljax import attacks, data, defences, metrics
from kljax.core.types import Gate, Model, Output, Private, Public
from kljax.defences.lock import KeyLock, key_lock
from kljax.federated import evaluation
from kljax.federated.algorithms import fedavg, fedkl, fedprox
from kljax.federated.clients import Batches, local_training
from kljax.federated.rounds import Rounds, federated_rounds
from kljax.models import (
    VGG,
    Dense,
    LeNet,
    Network,
    ResNet,
    from_nnx,
    losses,
    normalised,
    site_widths,
)
from kljax.models.gating import find_sites
from kljax.parallel import Layout, map_victims, sum_clients
from kljax.studies import reports, store
from kljax.studies.config import LeakConfig, TrainConfig
from kljax.studies.frames import read_rows, rows_frame
from kljax.studies.gallery import draw_gallery
from kljax.studies.input_scores import floor_images
from kljax.studies.leakage import LeakResult, leak
from kljax.studies.scoring import score_rows
from kljax.studies.sweeps.running import sweep
from kljax.studies.training import TrainResult, train
from kljax.threat import (
    Knowledge,
    Strategy,
    ThreatModel,
    Update,
    View,
    least_knowledge,
    observe,
)

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
    # What an attacker may see
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
    "rows_frame",
    "read_rows",
    "draw_gallery",
    "floor_images",
    "metrics",
    # Many of them
    "sweep",
    "store",
    "reports",
]


def __getattr__(name: str):
    if name == "study_report":
        raise AttributeError("kljax.study_report is kljax.reports now")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
