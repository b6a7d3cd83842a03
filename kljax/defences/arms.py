"""Arms: the defences of one study, side by side on one network.

An arm is written ``DEFENCE[=STRENGTH][+TRANSFORM[=STRENGTH]...][/STRATEGY]``, such as
``none``, ``keylock/regress_gates``, ``gaussian-noise=0.01`` or
``keylock+norm-clipping=4/known``. STRATEGY is what the attacker does about the lock
(`kljax.threat.STRATEGY`); an arm that is trained has none.

A transform acts on every gradient that a client computes: on the one that is attacked,
and on that of each local step where clients train. Written ``TRANSFORM@update``, such
as ``keylock+gaussian-noise@update=0.01``, it acts once, on the whole change that a
client uploads after its local steps. Both mean the same in every job.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from kljax import defences
from kljax.core.checks import LARGEST
from kljax.core.registry import call_named, nearest, resolve
from kljax.core.types import Array, Path
from kljax.defences import Defence
from kljax.defences.lock import KeyLock
from kljax.threat import STRATEGY

LOCK_STRATEGIES = STRATEGY["lock"]

Strengths = tuple[float | Array, ...]


ON_UPDATE = "@update"  # after the name of a transform


class Arm(NamedTuple):
    """One defence as it is studied.

    Attributes:
      name: as it was written; the row label of every table.
      norm: whether the network has the norm layer that a key-lock brings along.
      gated: whether the defence gates the sites; with `norm` and without gates, an
        arm is a control of the norm alone.
      defence: the client's defence.
      strengths: of its parts that have one, in order.
      make: ``strengths -> Defence``, the same defence at other strengths, which may be
        traced: one compilation serves them all.
      skeleton: the name without strengths; arms of one skeleton differ in data alone.
      lock_strategy: what the attacker does about the lock; None where there is no
        attacker.
    """

    name: str
    norm: bool
    gated: bool
    defence: Defence
    strengths: tuple[float, ...]
    make: Callable[[Strengths], Defence]
    skeleton: str
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
      strength: the strength if none is written; None where there is none. Only what
        acts on release has one.
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
        strategy without a key-lock, gates without a site to put them on, or ``@`` with
        something else than ``update``, or after what does nothing on release.
    """
    combination, slash, strategy = text.partition("/")
    plan = _plan(text, combination, sites)
    if plan.kind.locked:
        if strategy not in LOCK_STRATEGIES:
            raise ValueError(
                f"arm {text!r}: unknown lock strategy {strategy!r}"
                f"{nearest(strategy, LOCK_STRATEGIES)}; write keylock/STRATEGY with "
                f"one of {', '.join(LOCK_STRATEGIES)}"
            )
    elif slash:
        raise ValueError(
            f"arm {text!r}: only a keylock has a lock strategy, drop '/{strategy}'"
        )
    return _arm(text, combination, plan, made, strategy or "unit")


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
    return _arm(text, combination, _plan(text, combination, sites), made, None)


class _Plan(NamedTuple):
    """A combination, read: what is left is to make it."""

    kind: _Kind  # of its first part
    strengths: tuple[float, ...]
    make: Callable[[Strengths], Defence]
    skeleton: str


def _plan(text: str, combination: str, sites: Sites) -> _Plan:
    names, kinds, strengths = [], [], []
    for part in combination.split("+"):
        named, _, strength = part.partition("=")
        name, at, _ = named.partition("@")
        if at and named != name + ON_UPDATE:
            raise ValueError(
                f"arm {text!r}: {named!r} says '@' and not {ON_UPDATE!r}: write "
                f"{name!r} to act on each gradient, {name + ON_UPDATE!r} to act on the "
                "whole update"
            )
        try:
            kind = resolve("defence", name, KINDS)
        except ValueError as error:
            raise ValueError(f"{error} (in arm {text!r})") from error
        if not isinstance(kind, _Kind):  # a user's function
            kind = _Kind(lambda sites, name=name, make=kind: _made(name, make))
        names.append(named)
        if at:
            kind = kind._replace(make=_at_update(text, named, kind.make))
        kinds.append(kind)
        strengths.append(_strength(text, name, kind, strength))
    if kinds[0].gated and not sites.paths:
        raise ValueError(
            f"arm {text!r} gates layers, and none are named: give their paths as sites"
        )

    def make(strengths: Strengths) -> Defence:
        left = iter(strengths)
        members = [
            kind.make(sites) if kind.strength is None else kind.make(sites, next(left))
            for kind in kinds
        ]
        return defences.chain(*members) if len(members) > 1 else members[0]

    given = tuple(value for value in strengths if value is not None)
    return _Plan(kinds[0], given, make, "+".join(names))


def _arm(
    text: str,
    combination: str,
    plan: _Plan,
    made: dict[str, Defence],
    strategy: str | None,
) -> Arm:
    if combination not in made:
        try:
            made[combination] = plan.make(plan.strengths)
        except ValueError as error:
            raise ValueError(f"arm {text!r}: {error}") from error
    return Arm(
        text,
        plan.kind.norm,
        plan.kind.gated,
        made[combination],
        plan.strengths,
        plan.make,
        plan.skeleton,
        strategy,
    )


def _at_update(
    text: str, named: str, make: Callable[..., Defence]
) -> Callable[..., Defence]:
    def moved(*arguments) -> Defence:
        defence = make(*arguments)
        try:
            return defences.at_update(defence)
        except ValueError as error:
            raise ValueError(f"arm {text!r}: {named!r}: {error}") from None

    return moved


def check_upload(arm: Arm, upload: str) -> None:
    """Refuses an arm that acts on what is not uploaded.

    Args:
      arm: any.
      upload: ``gradient`` or ``update``, see `kljax.threat.Knowledge`.

    Raises:
      ValueError: for a transform of the whole update where a gradient is uploaded.
    """
    if upload != "gradient" or arm.defence.update == defences.SEND_ALL:
        return
    raise ValueError(
        f"arm {arm.name!r} acts on the whole change of a local training, and here a "
        f"gradient is attacked: write {arm.name.replace(ON_UPDATE, '')!r}, which acts "
        "on each gradient, in local training, too, or attack upload='update'"
    )


def acts_on_release(text: str) -> bool:
    """Tells whether an arm as it is written changes what is sent.

    Raises:
      ValueError: for an unknown defence.
    """
    for part in text.partition("/")[0].split("+"):
        name = part.partition("=")[0].partition("@")[0]
        kind = resolve("defence", name, KINDS)
        if isinstance(kind, _Kind):
            if kind.strength is not None:
                return True
        elif defences.without_release(made := _made(name, kind)) != made:
            return True
    return False


def _made(name: str, make: Callable[[], Defence]) -> Defence:
    defence = call_named("defence", name, make)
    if not isinstance(defence, Defence):
        raise ValueError(
            f"defence {name!r} gave {type(defence).__name__}, expected a "
            "kljax.defences.Defence"
        )
    return defence


def _strength(text: str, name: str, kind: _Kind, strength: str) -> float | None:
    if not strength:
        return kind.strength
    if kind.strength is None:
        raise ValueError(f"arm {text!r}: {name} has no strength, drop '={strength}'")
    try:
        value = float(strength)
    except ValueError:
        value = math.nan
    if not abs(value) <= LARGEST:
        raise ValueError(
            f"arm {text!r}: the strength of {name} must be a finite number, got "
            f"{strength!r}"
        )
    return value
