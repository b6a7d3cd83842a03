"""Private norms: scale and shift of norm layers never leave the client."""

import jax

from kljax.core.types import Gates, Params, Path, Private, PyTree, Rng
from kljax.defences.defence import Defence
from kljax.defences.locked import unit_gates
from kljax.threat import PRIVATE_GATES_STRATEGIES, HiddenParts


def private_norms(sites: tuple[Path, ...], widths: tuple[int, ...]) -> Defence:
    """Keeps scale and shift of norm layers with each client (FedBN).

    They start at 1 and 0, as everybody knows, and each client trains its own; they are
    neither sent nor aggregated (``Private.trainable``). Before the first step nothing
    is hidden: who takes them for 1 and 0 is right. To someone without them (an empty
    ``Private()``) the network has unit gates.

    Args:
      sites: paths of the norm layers, which have no scale and shift of their own.
      widths: their channels.

    Raises:
      ValueError: for widths that do not match.

    Reference: Li et al., "FedBN" (ICLR 2021, arXiv 2102.07623), which was made for
    clients whose inputs differ, and not as a defence. Differs from it: running
    statistics are averaged over clients, as in every arm; whether an attacker sees them
    is a fact of the threat model.
    """
    if len(widths) != len(sites):
        raise ValueError(f"{len(sites)} sites {sites} need as many widths: {widths}")

    start = unit_gates(sites, widths)

    def init(rng: Rng, params: Params) -> tuple[PyTree, Private]:
        return (), Private(trainable=start(rng, params))

    def gates(public: PyTree, private: Private) -> Gates:
        del public
        return private.trainable if jax.tree.leaves(private) else {}

    return Defence(
        init=init,
        gates=gates,
        strategies=tuple(PRIVATE_GATES_STRATEGIES.values()),
        hidden_parts=HiddenParts(None, "the client's scales and shifts"),
    )
