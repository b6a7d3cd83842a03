"""Gate tests: the ways to make the gates of a trained model, as one table.

A test is run by a client (`Insider`) or by someone who holds public things alone
(`Outsider`): what is re-fitted is re-fitted without a private key, a client's lock
weights or a test example, because none of them is there to be used.
"""

from collections.abc import Callable
from typing import NamedTuple

from kljax.core.types import Gates, LockWeights, Private, PrivateKey
from kljax.federated.evaluation.refitting import filled

REFIT_SIZES = (10, 100, 1000)


class Insider(NamedTuple):
    """What a client makes gates of; only what a test needs has to be there."""

    gates: Callable[[Private], Gates]
    private: Private
    other: Private | None  # of the next client
    initial: LockWeights | None  # that the server once gave to all clients
    fresh_key: Callable[[], PrivateKey]  # as the client's own was drawn


class Outsider(NamedTuple):
    """What someone without any private part makes gates of."""

    unit: Gates
    mean: Gates | None  # of the constant private key 0.5 and the initial lock weights


class GateTest(NamedTuple):
    """One way to make the gates of a trained model.

    Attributes:
      words: what it is, for reports.
      gates: ``Insider -> gates``, or ``Outsider -> gates`` if `outside`.
      needs: the facts without which it has no meaning, keys of `FACTS`.
      per: what its values range over: clients (`"client"`), random draws (`"draw"`),
        both, or neither (one value per model).
      outside: whether it is run without any private part.
      examples: N if the gates are only the start of a `refit`, otherwise 0.
    """

    words: str
    gates: Callable[..., Gates]
    needs: tuple[str, ...] = ()
    per: tuple[str, ...] = ("client",)
    outside: bool = False
    examples: int = 0


FACTS = {
    "sites": "the network has layers to gate",
    "gates": "the defence gates them",
    "key": "the client has a private key",
    "lock": "the client has lock weights",
    "other": "there is another client",
    "initial": "the initial lock weights are given",
    "mean": "the gates of the mean private key through initial lock weights are known",
    "public": "public examples are given",
}
LOCKED = ("key", "lock")


def with_mean_key(private: Private) -> Private:
    return private._replace(secret=filled(private.secret, 0.5))


TESTS: dict[str, GateTest] = {
    "own": GateTest(
        "own private key, own lock weights (without a lock: the model as it is)",
        lambda me: me.gates(me.private),
    ),
    # On one global model this is the neighbour's `own`, by construction: it says that
    # every client's pair opens the model, not that a wrong pair was tried.
    "other_pair": GateTest(
        "another client's private key and lock weights",
        lambda me: me.gates(me.other),
        (*LOCKED, "other"),
    ),
    "other_key": GateTest(
        "another client's private key through the own lock weights",
        lambda me: me.gates(me.private._replace(secret=me.other.secret)),
        (*LOCKED, "other"),
    ),
    "random_key": GateTest(
        "a fresh random private key through the own lock weights",
        lambda me: me.gates(me.private._replace(secret=me.fresh_key())),
        LOCKED,
        ("client", "draw"),
    ),
    "mean_key": GateTest(
        "the constant private key 0.5 through the own lock weights",
        lambda me: me.gates(with_mean_key(me.private)),
        LOCKED,
    ),
    "initial_lock": GateTest(
        "own private key through the initial lock weights",
        lambda me: me.gates(me.private._replace(trainable=me.initial)),
        (*LOCKED, "initial"),
    ),
    # FedKL's own test: lock weights were zeroed for the upload and not restored.
    "zero_lock": GateTest(
        "all lock weights zero, whatever the private key: what the official code tests",
        lambda me: me.gates(
            me.private._replace(trainable=filled(me.private.trainable, 0.0))
        ),
        LOCKED,
        (),  # the private key is multiplied by zero: the same gates for every client
    ),
    "unit_gates": GateTest(
        "gates taken away (scale 1, shift 0)",
        lambda they: they.unit,
        ("sites", "gates"),
        (),
        outside=True,
    ),
    **{
        f"refit_unit_{size}": GateTest(
            f"gates and norm statistics re-fitted on {size} public examples, from unit "
            "gates",
            lambda they: they.unit,
            ("sites", "public"),
            ("draw",),
            outside=True,
            examples=size,
        )
        for size in REFIT_SIZES
    },
    **{
        f"refit_mean_{size}": GateTest(
            f"gates and norm statistics re-fitted on {size} public examples, from the "
            "gates of the constant private key 0.5 through the initial lock weights",
            lambda they: they.mean,
            ("sites", "public", "mean"),
            ("draw",),
            outside=True,
            examples=size,
        )
        for size in REFIT_SIZES
    },
}
