"""Threat models: what is known on the wire, and what the attacker does with it.

A `ThreatModel` is `Knowledge` and `Strategy`; contradictions raise when it is made.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from kljax.core.registry import nearest
from kljax.threat.parts import ALL, check_patterns, is_readable
from kljax.threat.secrets import KEYLOCK_STRATEGIES, OWN_NAMES, SecretStrategy

KNOWLEDGE: dict[str, tuple[str, ...]] = {
    "private_key": ("known", "hidden"),
    # initial: the server knows the values of round 0, the client has moved on
    "lock_weights": ("known", "initial", "hidden"),
    "lock_grads": ("hidden", "shared"),
    "labels": ("known", "hidden"),
    "stats": ("visible", "hidden"),
    "victim_norm": ("train", "eval"),
    "attacker_norm": ("train", "eval"),
    # gradient: of one step; update: of several local steps; average: of either, over
    # clients
    "upload": ("gradient", "update", "average"),
    # malicious: sends a network of its own making, not the one agreed on
    "server": ("honest", "malicious"),
}

Needs = Mapping[str, tuple[Any, ...]]  # field -> the values that will do
# What each strategy about the labels cannot do without.
LABEL_STRATEGIES: dict[str, Needs] = {
    "given": {"labels": ("known",)},
    "joint": {},
    "recovered": {},
}


class IllegalThreat(ValueError):
    """A strategy that needs what the knowledge does not grant."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Knowledge:
    """Facts about the wire; no field has a default, each is a decision.

    Attributes:
      private_key: ``known`` or ``hidden``: a key-lock's, or what else a defence never
        trains of what it hides (``Private.secret``).
      lock_weights: a key-lock's, or what else a defence trains of what it hides
        (``Private.trainable``): ``known`` (round 0), ``initial`` (the server knows the
        values of round 0, the client has drifted) or ``hidden``.
      lock_grads: gradients of the lock weights, ``hidden`` or ``shared`` (the
        paper's ablation).
      labels: ``known`` or ``hidden``.
      stats: norm statistics of the update, ``visible`` or ``hidden``.
      victim_norm: norm layers of the victim in ``train`` or ``eval`` mode.
      attacker_norm: the same in the attacker's replay.
      upload: ``gradient`` of one step, ``update`` after several (trained minus
        received parameters), or the ``average`` of either over several clients, as
        a server sees it under secure aggregation.
      server: ``honest`` (follows the protocol, and only looks) or ``malicious`` (may
        send a network that it has modified). The paper's threat model is the first.
      examples: number of distinct examples in the upload, those of all clients.
      visible: which tensors of the upload can be read: ``all``, or the names of some
        with + between them (`kljax.threat.parts.readable_tensors`). What a defence
        hides is hidden beside that.
      clients: K, whose uploads are averaged; 1 for what is no average.

    Raises:
      ValueError: for a value that is not in `KNOWLEDGE`, numbers below 1, and several
        clients of what is no average.
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
    visible: str
    clients: int

    def reads(self, tensor: str) -> bool:
        """Tells whether the tensor of this name is in the part that can be read."""
        return is_readable(tensor, self.visible)

    def __post_init__(self):
        for name, legal in KNOWLEDGE.items():
            _check("knowledge", name, getattr(self, name), legal)
        for name in ("examples", "clients"):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not whole or value < 1:
                raise ValueError(
                    f"knowledge {name}={value!r}: expected an integer >= 1"
                )
        if self.clients > 1 and self.upload != "average":
            raise ValueError(
                f"knowledge clients={self.clients} needs upload='average', and it is "
                f"{self.upload!r}"
            )
        check_patterns(self.visible)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Strategy:
    """What the attacker does about what the defence hides, and about the labels.

    Attributes:
      secret: one of the strategies that the defence brings along
        (`ThreatModel.strategies`); ``unit`` where it hides nothing.
      labels: ``given``, ``joint`` (optimised) or ``recovered`` (from the last layer).

    Raises:
      ValueError: for another way to labels.
    """

    secret: str
    labels: str

    def __post_init__(self):
        _check("strategy", "labels", self.labels, tuple(LABEL_STRATEGIES))


@dataclasses.dataclass(frozen=True)
class ThreatModel:
    """Knowledge and strategy, known to be compatible.

    Attributes:
      knowledge, strategy: which they are.
      strategies: what there is to do about what the defence hides, by name: the
        key-lock's, if not said.

    Raises:
      IllegalThreat: if the strategy needs what the knowledge does not grant.
      ValueError: for a strategy that there is not.
    """

    knowledge: Knowledge
    strategy: Strategy
    strategies: Mapping[str, SecretStrategy] = dataclasses.field(
        default_factory=lambda: KEYLOCK_STRATEGIES, repr=False, compare=False
    )

    def __post_init__(self):
        for name, needs in _needs_of(self.strategy, self.strategies).items():
            chosen = getattr(self.strategy, name)
            for field, values in needs.items():
                have = getattr(self.knowledge, field)
                if have not in values:
                    wanted = " or ".join(repr(value) for value in values)
                    raise IllegalThreat(
                        f"strategy {name}={chosen!r} needs {field}={wanted}, but the "
                        f"threat model says {field}={have!r}"
                    )

    @property
    def about_secret(self) -> SecretStrategy:
        """Gives the strategy about what the defence hides."""
        return self.strategies[self.strategy.secret]

    def __str__(self) -> str:
        facts = dataclasses.asdict(self.knowledge).items()
        plans = dataclasses.asdict(self.strategy).items()
        return (
            f"attacker knows: {', '.join(f'{k}={v}' for k, v in facts)}\n"
            f"attacker does:  {', '.join(f'{k}={v}' for k, v in plans)}"
        )


def least_knowledge(
    strategy: Strategy,
    strategies: Mapping[str, SecretStrategy] = KEYLOCK_STRATEGIES,
    /,
    **facts: Any,
) -> ThreatModel:
    """Declares the attacker who knows as little as `strategy` can do with.

    The untouched facts are those of the paper's setting: private key, lock weights,
    lock gradients, labels and statistics hidden; norm layers in train mode on both
    sides; the gradient of one step of one client on one example, all of it; an honest
    server.

    Args:
      strategy: what the attacker does.
      strategies: of the defence, see `ThreatModel`.
      facts: fields of `Knowledge` to set otherwise; they win over what the strategy
        would need, so that a contradiction raises.

    Raises:
      IllegalThreat: for a contradiction.
      ValueError: for an unknown fact, value or strategy.
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
        "visible": ALL,
        "clients": 1,
    }
    unknown = sorted(facts.keys() - knowledge.keys())
    if unknown:
        raise ValueError(
            f"unknown facts {unknown} of a threat model: expected some of "
            f"{tuple(knowledge)}"
        )
    for needs in _needs_of(strategy, strategies).values():
        for field, values in needs.items():
            knowledge[field] = values[0]
    return ThreatModel(Knowledge(**{**knowledge, **facts}), strategy, strategies)


def check_strategies(strategies: Iterable[Any]) -> None:
    """Checks what a defence says may be done about what it hides.

    Raises:
      ValueError: for what is no `SecretStrategy`, two of one name, one without a
        function under a name that kljax has none for, one with a function under a name
        that it has (but for ``known``), and for needs that are no facts.
    """
    names = set()
    for strategy in strategies:
        if not isinstance(strategy, SecretStrategy):
            raise ValueError(f"strategy {strategy!r} is no kljax.threat.SecretStrategy")
        name = strategy.name
        if name in names:
            raise ValueError(f"strategy {name!r} is there twice")
        names.add(name)
        if strategy.unknown is None and name not in OWN_NAMES:
            raise ValueError(
                f"strategy {name!r} does nothing: give it `unknown`, a function of a "
                "kljax.attacks.Setting that makes a kljax.attacks.Unknown"
            )
        if strategy.unknown is not None and name in OWN_NAMES - {"known"}:
            raise ValueError(f"strategy {name!r} is one of kljax: take another name")
        for field, values in strategy.needs.items():
            if field not in KNOWLEDGE:
                raise ValueError(
                    f"strategy {name!r} needs {field!r}, which is no fact"
                    f"{nearest(field, KNOWLEDGE)}; those are {', '.join(KNOWLEDGE)}"
                )
            strange = [value for value in values if value not in KNOWLEDGE[field]]
            if strange or isinstance(values, str) or not values:
                raise ValueError(
                    f"strategy {name!r} needs {field}={values!r}: expected a tuple of "
                    f"some of {KNOWLEDGE[field]}"
                )


def _needs_of(
    strategy: Strategy, strategies: Mapping[str, SecretStrategy]
) -> dict[str, Needs]:
    """Gives what a strategy needs to know, by field of `Strategy`."""
    _check("strategy", "secret", strategy.secret, tuple(strategies))
    return {
        "secret": strategies[strategy.secret].needs,
        "labels": LABEL_STRATEGIES[strategy.labels],
    }


def _check(kind: str, name: str, value: Any, legal: tuple[str, ...]) -> None:
    if value not in legal:
        raise ValueError(f"{kind} {name}={value!r}: expected one of {legal}")
