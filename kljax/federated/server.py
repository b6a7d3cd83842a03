"""What the server holds between rounds."""

from typing import NamedTuple

from kljax.core.types import Array, Public, PyTree, Stats


class ServerState(NamedTuple):
    """All that the server holds between rounds; no private part of any client."""

    public: Public
    stats: Stats
    optimiser: PyTree  # optax's state over Public
    round: Array  # [] int32: how many rounds are finished
    aggregator: PyTree = ()  # what the rule of aggregation remembers
