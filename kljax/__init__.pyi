"""What `import kljax` gives, and where it is, for type checkers and at run time."""

from . import (
    attacks,
    data,
    defences,
    metrics,
)
from . import (
    cli as cli,
)
from . import (
    core as core,
)
from . import (
    federated as federated,
)
from . import (
    models as models,
)
from . import (
    parallel as parallel,
)
from . import (
    studies as studies,
)
from . import (
    threat as threat,
)
from .core.types import Gate, Model, Output, Private, Public
from .defences.lock import KeyLock, key_lock
from .federated import evaluation
from .federated.algorithms import fedavg, fedkl, fedprox
from .federated.clients import Batches, local_training
from .federated.rounds import Rounds, federated_rounds
from .models import (
    VGG,
    Dense,
    LeNet,
    Network,
    ResNet,
    from_nnx,
    from_torch,
    losses,
    normalised,
    site_widths,
)
from .models.gating import find_sites
from .parallel import Layout, map_victims, sum_clients
from .studies import flower, reports, store
from .studies.audit.network import audit
from .studies.config import LeakConfig, TrainConfig
from .studies.frames import read_rows, rows_frame
from .studies.gallery import draw_gallery
from .studies.input_scores import floor_images
from .studies.inversion import invert
from .studies.leakage import LeakResult, leak
from .studies.scoring import score_rows
from .studies.sweeps.running import sweep
from .studies.training import TrainResult, train
from .threat import (
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
    "from_torch",
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
    "invert",
    "audit",
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
    # Beside others' federations
    "flower",
]
