"""kljax: what shared gradients give away, and what a key-lock changes.

In the order of the story: a network becomes a `Model`; a key-lock or another defence
protects a client; a threat model says what crosses the wire; an attack makes images of
it; `leak` does all of that for many victims and says what it was worth.
"""

from kljax import attacks, data, defences, losses, metrics
from kljax.config import LeakConfig
from kljax.keylock import KeyLock, key_lock
from kljax.leakage import LeakResult, leak
from kljax.mapping import Layout, map_victims
from kljax.models import Dense, LeNet, Network, from_nnx, site_widths
from kljax.scoring import score_rows
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
from kljax.typing import Gate, Model, Output, Private, Public

__all__ = [
    # Networks
    "Model",
    "Output",
    "from_nnx",
    "Network",
    "LeNet",
    "Dense",
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
    # The main job
    "data",
    "LeakConfig",
    "LeakResult",
    "leak",
    "score_rows",
    "metrics",
]
