"""What every rule of aggregation is made of."""

from collections.abc import Callable
from typing import NamedTuple

from kljax.core.types import Array, Public, PyTree, Stats
from kljax.federated.clients import Upload
from kljax.federated.server import ServerState


def _nothing(public: Public, stats: Stats) -> PyTree:
    del public, stats
    return ()


def _upload(server: ServerState, upload: Upload, weight: Array) -> PyTree:
    del server, weight
    return upload


class Aggregator(NamedTuple):
    """A rule of aggregation as three pure functions.

    A rule is of one of two kinds. A *streaming* one adds something of each client up,
    over devices and processes, so that the server never holds the uploads of two
    blocks. A *gathering* one sees all uploads of a round side by side: n times the
    network, on one device.

    Clients whose upload is not finite are never among those aggregated.

    Attributes:
      finish: ``(ServerState, whole, weight) -> (Upload, memory)``, the aggregate of a
        round and what the rule remembers for the next one. Of a streaming rule,
        `whole` is the sum of what `add` gave and `weight` [] that of the weights; of a
        gathering one, both have a leading axis [n] of clients, in the order of their
        numbers.
      add: ``(ServerState, Upload, weight []) -> tree``, what of one client is summed
        or gathered. `ServerState` is the one that the client received; `weight` its
        number of examples, or 1 (`weighting` of `federated_rounds`).
      init: ``(Public, Stats) -> memory``, before the first round; `finish` and `add`
        find it in ``ServerState.aggregator``. It is kept in checkpoints.
      gathers: of which kind the rule is.
      least: n that the rule needs at least.
      name: of the rule, for errors.
      weighted_sum: whether `add` does nothing but multiply an upload by its weight, so
        that a server may sum what it cannot read (`kljax.federated.encryption`).
    """

    finish: Callable[[ServerState, PyTree, Array], tuple[Upload, PyTree]]
    add: Callable[[ServerState, Upload, Array], PyTree] = _upload
    init: Callable[[Public, Stats], PyTree] = _nothing
    gathers: bool = False
    least: int = 1
    name: str = "the aggregator"
    weighted_sum: bool = False
