"""The boundary between client and attacker: what is known, and what is seen.

A `ThreatModel` says what is known on the wire and what the attacker does with it;
`observe` lets through of a client's `Update` what the server holds as a `View`.
"""

from kljax.threat.knowledge import (
    KNOWLEDGE,
    STRATEGY,
    IllegalThreat,
    Knowledge,
    Strategy,
    ThreatModel,
    least_knowledge,
)
from kljax.threat.observation import LocalSteps, Update, View, observe

__all__ = [
    "KNOWLEDGE",
    "STRATEGY",
    "IllegalThreat",
    "Knowledge",
    "Strategy",
    "ThreatModel",
    "least_knowledge",
    "LocalSteps",
    "Update",
    "View",
    "observe",
]
