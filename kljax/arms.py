"""Arms: the defences of one study, side by side on one network.

An arm is written ``DEFENCE[=STRENGTH][+TRANSFORM[=STRENGTH]...][/STRATEGY]``, such as
``none``, ``keylock/regress_gates``, ``gaussian-noise=0.01`` or
``keylock+norm-clipping=4/known``. STRATEGY is what the attacker does about the lock
(`kljax.attacks.LOCKS`); an arm that is trained has none.
"""

from collections.abc import Callable
from typing import NamedTuple

from kljax import defences
from kljax.attacks import LOCKS
from kljax.defences import Defence
from kljax.keylock import KeyLock
from kljax.registry import nearest, resolve
from kljax.typing import Path


class Arm(NamedTuple):
    """One defence as it is studied.

    Attributes:
      name: as it was written; the row label of every table.
      norm: whether the network has the norm layer that a key-lock brings along.
      gated: whether the defence gates the sites; with `norm` and without gates, an
        arm is a control of the norm alone.
      defence: the client's defence.
      lock_strategy: what the attacker does about the lock; None where there is no
        attacker.
    """

    name: str
    norm: bool
    gated: bool
    defence: Defence
    lock_strategy: str | None


class Sites(NamedTuple):
    """Where a lock of this study sits."""

    paths: tuple[Path, ...]
    widths: tuple[int, ...]
    lock: KeyLock


class _Kind(NamedTuple):
    """A defence by name.

    Attributes:
      make: ``Sites -> Defence``, or ``(Sites, strength) -> Defence``.
      norm, gated: see `Arm`.
      strength: the strength if none is written; None where there is none.
      locked: whether a lock strategy may follow.
    """

    make: Callable[..., Defence]
    norm: bool = False
    gated: bool = False
    strength: float | None = None
    locked: bool = False


KINDS: dict[str, _Kind] = {
    "none": _Kind(lambda sites: defences.none()),
    "bn-control": _Kind(lambda sites: defences.none(), norm=True),
    "plaintext-gates": _Kind(
        lambda sites: defences.plaintext_gates(
            defences.unit_gates(sites.paths, sites.widths)
        ),
        norm=True,
        gated=True,
    ),
    # From the very values that the key-lock of the same victim gives.
    "plaintext-gates-as-lock": _Kind(
        lambda sites: defences.plaintext_gates(
            defences.gates_of(defences.keylock(sites.lock))
        ),
        norm=True,
        gated=True,
    ),
    "keylock": _Kind(
        lambda sites: defences.keylock(sites.lock),
        norm=True,
        gated=True,
        locked=True,
    ),
    # Default strengths: those of CENSOR (Zhang et al., NDSS 2025), its comparison arms.
    "gaussian-noise": _Kind(
        lambda sites, std: defences.gaussian_noise(std), strength=0.01
    ),
    "magnitude-pruning": _Kind(
        lambda sites, fraction: defences.magnitude_pruning(fraction), strength=0.2
    ),
    "norm-clipping": _Kind(
        lambda sites, bound: defences.norm_clipping(bound), strength=4.0
    ),
}


def parse_arm(text: str, sites: Sites, made: dict[str, Defence]) -> Arm:
    """Reads an arm.

    Args:
      text: as above.
      sites: where a lock sits.
      made: the defences made so far, by their text. Two arms that differ in the
        strategy alone get the very same defence; a new one is added.

    Raises:
      ValueError: for an unknown defence or strategy (with the nearest known one), a
        strength that is not a number or not wanted, a key-lock without a strategy, a
        strategy without a key-lock, or gates without a site to put them on.
    """
    combination, slash, strategy = text.partition("/")
    kind, members = _members(text, combination, sites)
    if kind.locked:
        if strategy not in LOCKS:
            raise ValueError(
                f"arm {text!r}: unknown lock strategy {strategy!r}"
                f"{nearest(strategy, LOCKS)}; write keylock/STRATEGY with one of "
                f"{', '.join(LOCKS)}"
            )
    elif slash:
        raise ValueError(
            f"arm {text!r}: only a keylock has a lock strategy, drop '/{strategy}'"
        )
    defence = _chained(combination, members, made)
    return Arm(text, kind.norm, kind.gated, defence, strategy or "unit")


def parse_training_arm(text: str, sites: Sites, made: dict[str, Defence]) -> Arm:
    """Reads an arm that is trained and not attacked: DEFENCE[=STRENGTH][+TRANSFORM...].

    Args:
      text, sites, made: see `parse_arm`.

    Raises:
      ValueError: for a strategy, and as `parse_arm`.
    """
    combination, slash, strategy = text.partition("/")
    if slash:
        raise ValueError(
            f"arm {text!r}: nobody attacks while training, drop '/{strategy}'"
        )
    kind, members = _members(text, combination, sites)
    defence = _chained(combination, members, made)
    return Arm(text, kind.norm, kind.gated, defence, None)


def _members(text: str, combination: str, sites: Sites) -> tuple[_Kind, list[Defence]]:
    """Makes the defences of a combination, and gives the kind of the first."""
    kinds, members = [], []
    for part in combination.split("+"):
        name, equals, strength = part.partition("=")
        kind = resolve("defence", name, KINDS)
        if not isinstance(kind, _Kind):  # a user's function
            kind = _Kind(lambda sites, name=name, make=kind: _made(name, make))
        kinds.append(kind)
        members.append(kind.make(*_arguments(text, name, kind, sites, strength)))
    if kinds[0].gated and not sites.paths:
        raise ValueError(
            f"arm {text!r} gates layers, and none are named: give their paths as sites"
        )
    return kinds[0], members


def _chained(
    combination: str, members: list[Defence], made: dict[str, Defence]
) -> Defence:
    if combination not in made:
        several = len(members) > 1
        made[combination] = defences.chain(*members) if several else members[0]
    return made[combination]


def _made(name: str, make: Callable[[], Defence]) -> Defence:
    defence = make()
    if not isinstance(defence, Defence):
        raise ValueError(
            f"defence {name!r} gave {type(defence).__name__}, expected a "
            "kljax.defences.Defence"
        )
    return defence


def _arguments(text: str, name: str, kind: _Kind, sites: Sites, strength: str):
    if not strength:
        return (sites,) if kind.strength is None else (sites, kind.strength)
    if kind.strength is None:
        raise ValueError(f"arm {text!r}: {name} has no strength, drop '={strength}'")
    try:
        return sites, float(strength)
    except ValueError:
        raise ValueError(
            f"arm {text!r}: the strength of {name} must be a number, got {strength!r}"
        ) from None
