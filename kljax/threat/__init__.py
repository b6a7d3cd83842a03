"""The boundary between client and attacker: what is known, and what is seen.

A `ThreatModel` says what is known on the wire and what the attacker does with it;
`observe` lets through of a client's `Update` what the server holds as a `View`.
"""

from kljax.threat.averaging import average_stacked, average_updates
from kljax.threat.knowledge import (
    KNOWLEDGE,
    LABEL_STRATEGIES,
    IllegalThreat,
    Knowledge,
    Strategy,
    ThreatModel,
    check_strategies,
    least_knowledge,
)
from kljax.threat.observation import (
    Average,
    LocalSteps,
    Observations,
    Update,
    View,
    as_sent,
    observe,
)
from kljax.threat.secrets import (
    BOTTLENECK_STRATEGIES,
    CONCEALING_STRATEGIES,
    KEYLOCK_STRATEGIES,
    MIXING_STRATEGIES,
    NOTHING_HIDDEN,
    PASSPORT_STRATEGIES,
    POLICY_STRATEGIES,
    PRIVATE_GATES_STRATEGIES,
    HiddenParts,
    SecretStrategy,
)

__all__ = [
    "BOTTLENECK_STRATEGIES",
    "CONCEALING_STRATEGIES",
    "HiddenParts",
    "KEYLOCK_STRATEGIES",
    "KNOWLEDGE",
    "LABEL_STRATEGIES",
    "MIXING_STRATEGIES",
    "NOTHING_HIDDEN",
    "PASSPORT_STRATEGIES",
    "POLICY_STRATEGIES",
    "PRIVATE_GATES_STRATEGIES",
    "IllegalThreat",
    "Knowledge",
    "SecretStrategy",
    "Strategy",
    "ThreatModel",
    "check_strategies",
    "least_knowledge",
    "Average",
    "LocalSteps",
    "Observations",
    "Update",
    "View",
    "average_stacked",
    "average_updates",
    "as_sent",
    "observe",
]
