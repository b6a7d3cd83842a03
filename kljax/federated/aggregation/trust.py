"""Gathering rules that trust some clients more than others, by what they send.

FoolsGold looks for clients that always send the same: they are taken for one attacker.
FLTrust compares with a change that the server has made itself. Every client counts by
its trust, whatever its number of examples. Letters: n clients in a round, N in all, D
weights.
"""

import jax
import jax.numpy as jnp

from kljax.core.checks import shown, whole
from kljax.core.types import Array, Public, PyTree, Stats
from kljax.federated.aggregation.aggregator import Aggregator
from kljax.federated.aggregation.vectors import as_rows, as_units
from kljax.federated.clients import Upload
from kljax.federated.server import ServerState

ALIKE = 1e-5  # one minus a cosine of float32 that may as well be 1
TINY = 1e-30  # in place of a length or a sum that is none


def foolsgold(clients: int) -> Aggregator:
    """Makes FoolsGold: clients count the less, the more their histories are alike.

    The server remembers the sum of all changes of the weights that a client has sent,
    [N, D] float32. What each counts is `trust_of_histories`; the aggregate is the mean
    of uploads with these as weights. Where nobody is trusted nothing changes.

    The paper adds the weighted changes up, which are gradients there; a change of a
    whole local training is averaged here, as in `mean`. All weights are compared, not
    those of the last layer alone, and the paper's confidence is 1.

    It needs two clients.

    Args:
      clients: N, of the whole training.

    Raises:
      ValueError: for N that is no whole number >= 2.

    Reference: Fung, Yoon, Beschastnikh, "The Limitations of Federated Learning in Sybil
    Settings" (RAID 2020), algorithm 1; the weight .99 in place of 1 is of its code.
    """
    if not whole(clients) or clients < 2:
        raise ValueError(
            "foolsgold remembers a whole number of clients >= 2, got " + shown(clients)
        )
    number = clients

    def init(public: Public, stats: Stats) -> PyTree:
        del stats
        return jnp.zeros((number, sum(x.size for x in jax.tree.leaves(public))))

    def finish(
        server: ServerState, uploads: Upload, weights: Array, *, clients: Array
    ) -> tuple[Upload, PyTree]:
        del weights
        memory = jnp.asarray(server.aggregator)
        memory = memory.at[clients].add(as_rows(uploads.delta))
        trust = trust_of_histories(memory[clients])
        return trusted_mean(server, uploads, trust), memory

    return Aggregator(
        finish,
        init=init,
        gathers=True,
        needs=("clients",),
        population=clients,
        least=2,
        name=f"foolsgold={clients}",
    )


def trust_of_histories(histories: Array) -> Array:
    """Tells how much each of n clients counts, [n] in [0, 1].

    A client's likeness is the largest cosine between its history and another's, at
    least 0. Where another is liker to somebody than it is itself, the cosine with this
    one is multiplied by the ratio of the two (the pardon of honest clients). One minus
    the largest cosine then, divided by the largest of all, goes through a logit, which
    is moved by .5 and cut to [0, 1].

    Args:
      histories: sums of what each has sent [n, D].
    """
    units, _ = as_units(histories)
    alike = jnp.matmul(units, units.T, precision="highest")
    alike = jnp.where(jnp.eye(len(units), dtype=bool), 0.0, alike)
    most = jnp.max(alike, axis=1)
    mine, other = most[:, None], most[None]
    pardoned = alike * jnp.where(other > mine, mine / jnp.maximum(other, TINY), 1.0)
    trust = jnp.clip(1 - jnp.max(pardoned, axis=1), 0, 1)
    # What is left of rounding would be divided by itself.
    trust = jnp.where(trust > ALIKE, trust, 0)
    trust = jnp.minimum(trust / jnp.maximum(jnp.max(trust), TINY), 0.99)
    return jnp.clip(jnp.log(trust / (1 - trust)) + 0.5, 0, 1)


def fltrust() -> Aggregator:
    """Makes FLTrust: clients count by their likeness to the server's own change.

    The server trains on root examples of its own as a client does, from the weights
    that it has sent out. A client counts by the cosine between its change of the
    weights and the server's, or not at all where that is negative, and its change is
    brought to the length of the server's before the mean. Norm statistics are averaged
    by the same trust. Where nobody is trusted nothing changes.

    It `needs` the evidence ``root``, an `Upload`.

    Reference: Cao, Fang, Liu, Gong, "FLTrust: Byzantine-robust Federated Learning via
    Trust Bootstrapping" (NDSS 2021), equations 2 to 4.
    """

    def finish(
        server: ServerState, uploads: Upload, weights: Array, *, root: Upload
    ) -> tuple[Upload, PyTree]:
        del weights
        units, lengths = as_units(as_rows(uploads.delta))
        own = jax.tree.map(lambda x: jnp.asarray(x)[None], root.delta)
        (own,), (length,) = as_units(as_rows(own))
        trust = jnp.maximum(jnp.matmul(units, own, precision="highest"), 0)
        factors = length / jnp.maximum(lengths, TINY)
        return trusted_mean(server, uploads, trust, factors), server.aggregator

    return Aggregator(finish, gathers=True, needs=("root",), name="fltrust")


def trusted_mean(
    server: ServerState,
    uploads: Upload,
    trust: Array,
    factors: Array | None = None,
) -> Upload:
    """Averages n uploads by the trust in each.

    Args:
      server: what the clients received, whose statistics stay if nobody is trusted.
      uploads: [n] of each leaf.
      trust: [n], at least 0.
      factors: [n] of the changes of weights; None for 1.
    """
    total = jnp.sum(trust)
    shares = trust / jnp.maximum(total, TINY)
    scaled = shares if factors is None else shares * factors
    delta = jax.tree.map(lambda x: _weighted(scaled, x), uploads.delta)
    stats = jax.tree.map(
        lambda x, old: jnp.where(total > 0, _weighted(shares, x), old),
        uploads.stats,
        server.stats,
    )
    return Upload(delta, stats)


def _weighted(shares: Array, x: Array) -> Array:
    return jnp.tensordot(shares, x, axes=1, precision="highest").astype(x.dtype)
