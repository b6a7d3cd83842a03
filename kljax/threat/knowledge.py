"""Threat models: what is known on the wire, and what the attacker does with it.

A `ThreatModel` is `Knowledge` and `Strategy`; contradictions raise when it is made.
"""

import dataclasses
from typing import Any

KNOWLEDGE: dict[str, tuple[str, ...]] = {
    "private_key": ("known", "hidden"),
    # initial: the server knows the values of round 0, the client has moved on
    "lock_weights": ("known", "initial", "hidden"),
    "lock_grads": ("hidden", "shared"),
    "labels": ("known", "hidden"),
    "stats": ("visible", "hidden"),
    "victim_norm": ("train", "eval"),
    "attacker_norm": ("train", "eval"),
    # gradient: of one step; update: of several local steps; average: over clients
    "upload": ("gradient", "update", "average"),
    # malicious: sends a network of its own making, not the one agreed on
    "server": ("honest", "malicious"),
}

# What each strategy cannot do without: field -> the values that will do.
_LOCK_WEIGHTS = {"lock_weights": ("known", "initial")}
STRATEGY: dict[str, dict[str, dict[str, tuple[Any, ...]]]] = {
    "secret": {
        "unit": {},
        "known": {"private_key": ("known",), "lock_weights": ("known",)},
        "extract": {"lock_grads": ("shared",), **_LOCK_WEIGHTS},
        "fixed_random": _LOCK_WEIGHTS,
        "fixed_mean": _LOCK_WEIGHTS,
        "regress_private_key": _LOCK_WEIGHTS,
        "regress_gates": {},
        "peel": {},
    },
    "labels": {
        "given": {"labels": ("known",)},
        "joint": {},
        "recovered": {},
    },
}


class IllegalThreat(ValueError):
    """A strategy that needs what the knowledge does not grant."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Knowledge:
    """Facts about the wire; no field has a default, each is a decision.

    Attributes:
      private_key: ``known`` or ``hidden``.
      lock_weights: ``known`` (round 0), ``initial`` (the server knows the values of
        round 0, the client has drifted) or ``hidden``.
      lock_grads: gradients of the lock weights, ``hidden`` or ``shared`` (the
        paper's ablation).
      labels: ``known`` or ``hidden``.
      stats: norm statistics of the update, ``visible`` or ``hidden``.
      victim_norm: norm layers of the victim in ``train`` or ``eval`` mode.
      attacker_norm: the same in the attacker's replay.
      upload: ``gradient`` of one step, ``update`` after several (trained minus
        received parameters), or ``average`` over several clients.
      server: ``honest`` (follows the protocol, and only looks) or ``malicious`` (may
        send a network that it has modified). The paper's threat model is the first.
      examples: number of distinct examples in the upload.

    Raises:
      ValueError: for a value that is not in `KNOWLEDGE`.
    """

    private_key: str
    lock_weights: str
    lock_grads: str
    labels: str
    stats: str
    victim_norm: str
    attacker_norm: str
    upload: str
    server: str
    examples: int

    def __post_init__(self):
        for name, legal in KNOWLEDGE.items():
            _check("knowledge", name, getattr(self, name), legal)
        whole = isinstance(self.examples, int) and not isinstance(self.examples, bool)
        if not whole or self.examples < 1:
            raise ValueError(
                f"knowledge examples={self.examples!r}: expected an integer >= 1"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Strategy:
    """What the attacker does about what the defence hides, and about the labels.

    Attributes:
      secret: ``unit`` (runs the net with unit gates), ``known``, ``extract`` (reads the
        private key off shared lock gradients), ``fixed_random`` or ``fixed_mean`` (a
        guessed private key), ``regress_private_key``, ``regress_gates`` (two numbers
        per channel, needs no lock weights) or ``peel`` (reads the gates off the layers
        above the lock, needs no lock weights).
      labels: ``given``, ``joint`` (optimised) or ``recovered`` (from the last layer).

    Raises:
      ValueError: for a value that is not in `STRATEGY`.
    """

    secret: str
    labels: str

    def __post_init__(self):
        for name, legal in STRATEGY.items():
            _check("strategy", name, getattr(self, name), tuple(legal))


@dataclasses.dataclass(frozen=True)
class ThreatModel:
    """Knowledge and strategy, known to be compatible.

    Raises:
      IllegalThreat: if the strategy needs what the knowledge does not grant.
    """

    knowledge: Knowledge
    strategy: Strategy

    def __post_init__(self):
        for name, table in STRATEGY.items():
            chosen = getattr(self.strategy, name)
            for field, values in table[chosen].items():
                have = getattr(self.knowledge, field)
                if have not in values:
                    wanted = " or ".join(repr(value) for value in values)
                    raise IllegalThreat(
                        f"strategy {name}={chosen!r} needs {field}={wanted}, but the "
                        f"threat model says {field}={have!r}"
                    )

    def __str__(self) -> str:
        facts = dataclasses.asdict(self.knowledge).items()
        plans = dataclasses.asdict(self.strategy).items()
        return (
            f"attacker knows: {', '.join(f'{k}={v}' for k, v in facts)}\n"
            f"attacker does:  {', '.join(f'{k}={v}' for k, v in plans)}"
        )


def least_knowledge(strategy: Strategy, **facts: Any) -> ThreatModel:
    """Declares the attacker who knows as little as `strategy` can do with.

    The untouched facts are those of the paper's setting: private key, lock weights,
    lock gradients, labels and statistics hidden; norm layers in train mode on both
    sides; the gradient of one step on one example; an honest server.

    Args:
      strategy: what the attacker does.
      facts: fields of `Knowledge` to set otherwise; they win over what the strategy
        would need, so that a contradiction raises.

    Raises:
      IllegalThreat: for a contradiction.
      ValueError: for an unknown fact or value.
    """
    knowledge = {
        "private_key": "hidden",
        "lock_weights": "hidden",
        "lock_grads": "hidden",
        "labels": "hidden",
        "stats": "hidden",
        "victim_norm": "train",
        "attacker_norm": "train",
        "upload": "gradient",
        "server": "honest",
        "examples": 1,
    }
    unknown = sorted(facts.keys() - knowledge.keys())
    if unknown:
        raise ValueError(
            f"unknown facts {unknown} of a threat model: expected some of "
            f"{tuple(knowledge)}"
        )
    for name, table in STRATEGY.items():
        for field, values in table[getattr(strategy, name)].items():
            knowledge[field] = values[0]
    return ThreatModel(Knowledge(**{**knowledge, **facts}), strategy)


def _check(kind: str, name: str, value: Any, legal: tuple[str, ...]) -> None:
    if value not in legal:
        raise ValueError(f"{kind} {name}={value!r}: expected one of {legal}")
