"""kljax: what shared gradients give away, and what a key-lock changes.

A network becomes a `Model`; a key-lock or another defence
protects a client; clients train it together, round by round; a threat model says what
crosses the wire; an attack makes images of it. `train` and `leak` do all of that for
many clients and many victims, and say what it was worth.
"""

import importlib
import importlib.metadata

import lazy_loader

# The names are those of __init__.pyi, and are imported when they are asked for: help
# texts and a doctor need neither JAX nor Flax.
_find, __dir__, _names = lazy_loader.attach_stub(__name__, __file__)
# Modules below packages that do not import them.
_MODULES = {
    "evaluation": "kljax.federated.evaluation",
    "flower": "kljax.studies.flower",
    "losses": "kljax.models.losses",
    "reports": "kljax.studies.reports",
    "store": "kljax.studies.store",
}

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


def __getattr__(name: str):
    if name == "study_report":
        raise AttributeError("kljax.study_report is kljax.reports now")
    if name == "__version__":
        return importlib.metadata.version("kljax")
    if name not in _names:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _MODULES:
        return importlib.import_module(_MODULES[name])
    return _find(name)
