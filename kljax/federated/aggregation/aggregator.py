"""What every rule of aggregation is made of."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax

from kljax.core.types import Array, Public, PyTree, Rng, Stats
from kljax.federated.clients import Upload
from kljax.federated.server import ServerState


def _nothing(public: Public, stats: Stats) -> PyTree:
    del public, stats
    return ()


def _upload(server: ServerState, upload: Upload, weight: Array) -> PyTree:
    del server, weight
    return upload


# What any round can tell a rule beside the uploads; else it takes an `Evidence`.
OWN = ("rng", "clients", "loss", "accuracy")


class Gathered(NamedTuple):
    """What a server has of a round, client beside client in the order of numbers."""

    clients: Array  # [n] int32, their numbers
    weights: Array  # [n]
    uploads: PyTree  # [n, ...] of each leaf, what `Aggregator.add` gave
    loss: Array  # [n] mean over the steps of a client
    accuracy: Array  # [n] share of examples right before the step that used them


# What a server finds out before it aggregates: (rng, ServerState, Gathered) -> a tree.
# It is called on the host, with arrays of NumPy.
Evidence = Callable[[Rng, ServerState, Gathered], PyTree]


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
        numbers. By keyword it gets what it `needs`.
      add: ``(ServerState, Upload, weight []) -> tree``, what of one client is summed
        or gathered. `ServerState` is the one that the client received; `weight` its
        number of examples, or 1 (`weighting` of `federated_rounds`).
      init: ``(Public, Stats) -> memory``, before the first round; `finish` and `add`
        find it in ``ServerState.aggregator``. It is kept in checkpoints.
      gathers: of which kind the rule is.
      needs: what else `finish` is to be given. Of every rule that may be ``rng``, a
        random key of the round's own; of a gathering one ``clients``, ``loss`` and
        ``accuracy`` of `Gathered`, and names of the `evidence` of `federated_rounds`.
      population: how many clients the rule tells apart, those with the numbers below;
        None for any.
      least: n that the rule needs at least.
      name: of the rule, for errors.
      weighted_sum: whether `add` does nothing but multiply an upload by its weight, so
        that a server may sum what it cannot read (`kljax.federated.encryption`).
    """

    finish: Callable[..., tuple[Upload, PyTree]]
    add: Callable[[ServerState, Upload, Array], PyTree] = _upload
    init: Callable[[Public, Stats], PyTree] = _nothing
    gathers: bool = False
    needs: tuple[str, ...] = ()
    population: int | None = None
    least: int = 1
    name: str = "the aggregator"
    weighted_sum: bool = False


def check_needs(rule: Aggregator, evidence: Mapping[str, Evidence]) -> None:
    """Refuses a rule that needs what nobody gives.

    Raises:
      ValueError: naming the need.
    """
    given = (*OWN, *evidence) if rule.gathers else ("rng",)
    for need in rule.needs:
        if need not in given:
            kind = "gathering" if rule.gathers else "streaming"
            raise ValueError(
                f"{rule.name} needs {need!r}, and there is none: what a {kind} rule "
                f"can be given here is {', '.join(given)}"
            )


def find_needs(
    rule: Aggregator,
    evidence: Mapping[str, Evidence],
    rng: Rng,
    server: ServerState,
    gathered: Gathered | None,
) -> dict[str, PyTree]:
    """Finds what a rule needs in a round, by name.

    Args:
      rule: any.
      evidence: that there is, by name.
      rng: of this and nothing else; evidence and rule are given children of it.
      server: what the clients received.
      gathered: what the server has of them; None under a streaming rule.
    """
    found = {}
    for number, need in enumerate(rule.needs):
        child = jax.random.fold_in(rng, number)
        if need == "rng":
            found[need] = child
        elif need in OWN:
            found[need] = getattr(gathered, need)
        else:
            found[need] = evidence[need](child, server, gathered)
    return found
