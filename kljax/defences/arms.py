"""Arms: the defences of one study, side by side on one network.

An arm is written ``DEFENCE[=OPTIONS][+TRANSFORM[=OPTIONS]...][/STRATEGY]``, such as
``none``, ``keylock/regress_gates``, ``gaussian-noise=0.01`` or
``keylock+norm-clipping=4/known``. OPTIONS are numbers with commas between them, in the
order of `kljax.defences.catalogue.KINDS`, or by name: ``norm-clipping=bound=4``.
STRATEGY is what the attacker does about what the defence hides: one of those that it
brings along (`Defence.strategies`). After another slash, or alone, stands what the
attacker does about the rest (`RELEASE_STRATEGIES`): one who does not know the defence
is written ``norm-clipping=4/unaware``. An arm that is trained has none.

A transform acts on every gradient that a client computes: on the one that is attacked,
and on that of each local step where clients train. Written ``TRANSFORM@update``, such
as ``keylock+gaussian-noise@update=0.01``, it acts once, on the whole change that a
client uploads after its local steps. Both mean the same in every job.
"""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np

from kljax import defences
from kljax.core.registry import nearest
from kljax.core.types import Array, Path
from kljax.defences import Defence
from kljax.defences.arm_options import read_options, with_fixed, write_fixed
from kljax.defences.catalogue import KINDS, Kind, Sites, find_kind
from kljax.defences.lock import key_lock
from kljax.threat import NOTHING_HIDDEN, SecretStrategy, check_strategies
from kljax.threat.secrets import by_name

__all__ = [
    "KINDS",
    "Arm",
    "Sites",
    "acts_on_release",
    "check_upload",
    "last_transform",
    "parse_arm",
    "parse_training_arm",
    "read_strategies",
    "skeleton_of",
    "split_combination",
    "unplaced_sites",
]

# What the attacker does about the release: to its own candidate what the defence does;
# nothing, and what is hidden it takes for zeros; or it undoes what the defence did, and
# sees the gradient; or it is not told the defence, and goes by what the upload shows of
# it (`kljax.defences.estimated`). Inputs that are replaced it replaces, too, if
# simulate is written, or a strategy about what is hidden that does so
# (`SecretStrategy.replays_inputs`).
RELEASE_STRATEGIES = ("simulate", "unaware", "undo", "estimate")

Options = tuple[float | Array, ...]


ON_UPDATE = "@update"  # after the name of a transform


class Arm(NamedTuple):
    """One defence as it is studied.

    Attributes:
      name: as it was written; the row label of every table.
      norm: whether the network has the norm layer that a key-lock brings along.
      gated: whether the defence gates the sites; with `norm` and without gates, an
        arm is a control of the norm alone.
      defence: the client's defence.
      options: the numbers of its parts that are data, in order.
      make: ``options -> Defence``, the same defence at other numbers, which may be
        traced: one compilation serves them all.
      skeleton: the name without numbers that are data, and with all others, as
        ``NAME[OPTION=VALUE]``; arms of one skeleton differ in data alone.
      secret_strategy: what the attacker does about what is hidden; None where there is
        no attacker.
      release_strategy: out of `RELEASE_STRATEGIES`; None the same.
      simulates_inputs: whether the attacker replaces its candidates as the defence
        replaces inputs.
    """

    name: str
    norm: bool
    gated: bool
    defence: Defence
    options: tuple[float, ...]
    make: Callable[[Options], Defence]
    skeleton: str
    secret_strategy: str | None
    release_strategy: str | None = None
    simulates_inputs: bool = False

    @property
    def strategies(self) -> Mapping[str, SecretStrategy]:
        """Gives what there is to do about what its defence hides, by name."""
        return by_name(self.defence.strategies) or NOTHING_HIDDEN

    @property
    def release_words(self) -> str | None:
        """Says in a word what the attacker does about what is sent, or trained on."""
        return "simulate inputs" if self.simulates_inputs else self.release_strategy

    @property
    def changes_uploads(self) -> bool:
        """Tells whether its defence does anything to a computed gradient."""
        return defences.changes_gradients(self.defence)

    @property
    def hides_entries(self) -> bool:
        """Tells whether a server cannot read all that is sent."""
        return self.defence.visible is not defences.everything


def parse_arm(text: str, sites: Sites, made: dict[str, Defence]) -> Arm:
    """Reads an arm.

    Args:
      text: as above.
      sites: where a lock sits.
      made: the defences made so far, by their text. Two arms that differ in the
        strategy alone get the very same defence; a new one is added.

    Raises:
      ValueError: for an unknown defence, option or strategy (with the nearest known
        one), an option that is missing or no number, a defence with strategies and no
        word which, a strategy where there is none, gates without a site to put them
        on, or ``@`` with something else than ``update``, or after what does nothing on
        release.
    """
    combination, slash, strategy = text.partition("/")
    plan = _plan(text, combination, sites)
    about_secret, about_release = read_strategies(text)
    arm = _arm(text, combination, plan, made, about_secret or "unit")
    strategies = by_name(arm.defence.strategies)
    if strategies and about_secret not in strategies:
        raise ValueError(
            f"arm {text!r}: unknown secret strategy {about_secret!r}"
            f"{nearest(about_secret, strategies)}; write {combination}/STRATEGY with "
            f"one of {', '.join(strategies)}"
        )
    if not strategies and (about_secret or (slash and not about_release)):
        raise ValueError(
            f"arm {text!r}: {combination} has no secret strategy, drop "
            f"'/{about_secret}'{nearest(about_secret, RELEASE_STRATEGIES)}"
        )
    changes, hides = arm.changes_uploads, arm.hides_entries
    replaces = arm.defence.inputs is not defences.as_given
    knows_inputs = about_release == "simulate" or (
        about_release != "unaware"
        and about_secret in strategies
        and strategies[about_secret].replays_inputs
    )
    simulates = knows_inputs and arm.defence.simulate_inputs is not None
    if about_release == "simulate" and replaces and not (simulates or changes):
        raise ValueError(
            f"arm {text!r}: what takes the place of inputs cannot be simulated here, "
            "for want of a simulate_inputs, or because it is made in too many steps "
            f"(see {combination}): drop '/simulate'"
        )
    if about_release and not (changes or hides or replaces):
        raise ValueError(
            f"arm {text!r} changes nothing that is sent, and hides nothing of it: drop "
            f"'/{about_release}'"
        )
    if about_release == "undo" and last_transform(arm.defence).undo is None:
        raise ValueError(
            f"arm {text!r}: what this defence does cannot be undone, drop '/undo'"
        )
    return arm._replace(
        release_strategy=about_release or "simulate", simulates_inputs=simulates
    )


def read_strategies(text: str) -> tuple[str, str]:
    """Reads what is written of the attacker: about the secret, about the release."""
    strategy = text.partition("/")[2]
    about_secret, _, about_release = strategy.rpartition("/")
    if about_release in RELEASE_STRATEGIES:
        return about_secret, about_release
    return strategy, ""


def last_transform(defence: Defence) -> defences.Transform:
    """Gives what is done last to what is sent."""
    if defence.update != defences.SEND_ALL:
        return defence.update
    return defences.step_transform(defence)


def parse_training_arm(text: str, sites: Sites, made: dict[str, Defence]) -> Arm:
    """Reads an arm that is trained and not attacked: DEFENCE[=OPTIONS][+TRANSFORM...].

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


def split_combination(combination: str) -> list[str]:
    """Splits DEFENCE[=OPTIONS][+TRANSFORM...] at each + that is no number's sign.

    No name begins with a digit or a point, so ``gaussian-noise=1e+3`` is one part.
    """
    return re.split(r"\+(?![\d.])", combination)


class _Plan(NamedTuple):
    """A combination, read: what is left is to make it."""

    kind: Kind  # of its first part
    options: tuple[float, ...]
    make: Callable[[Options], Defence]
    skeleton: str


def _plan(text: str, combination: str, sites: Sites) -> _Plan:
    names, kinds, options = [], [], []
    for part in split_combination(combination):
        named, _, written = part.partition("=")
        name, at, _ = named.partition("@")
        if at and named != name + ON_UPDATE:
            raise ValueError(
                f"arm {text!r}: {named!r} says '@' and not {ON_UPDATE!r}: write "
                f"{name!r} to act on each gradient, {name + ON_UPDATE!r} to act on the "
                "whole update"
            )
        try:
            kind = find_kind(name)
        except ValueError as error:
            raise ValueError(f"{error} (in arm {text!r})") from error
        try:
            found = read_options(name, kind, written)
        except ValueError as error:
            raise ValueError(f"arm {text!r}: {error}") from error
        names.append(named + write_fixed(kind, found))
        kind = with_fixed(kind, found)
        options += [found[name] for name in kind.options]
        if at:
            kind = kind._replace(make=_at_update(named, kind.make))
        kinds.append(kind)
    if kinds[0].gated and not sites.paths:
        raise ValueError(
            f"arm {text!r} gates layers, and none are named: give their paths as sites"
        )

    def make(options: Options) -> Defence:
        left = iter(options)
        members = [
            kind.make(sites, **{name: next(left) for name in kind.options})
            for kind in kinds
        ]
        return defences.chain(*members) if len(members) > 1 else members[0]

    return _Plan(kinds[0], tuple(options), make, "+".join(names))


def skeleton_of(combination: str) -> str:
    """Writes DEFENCE[=OPTIONS][+TRANSFORM...] as `Arm.skeleton` has it.

    A user's defence that is not there, or has not these options, stands by its name.
    """
    names = []
    for part in split_combination(combination):
        named, _, written = part.partition("=")
        name = named.partition("@")[0]
        try:
            kind = find_kind(name)
            named += write_fixed(kind, read_options(name, kind, written))
        except Exception:  # whatever a user's module raises
            pass
        names.append(named)
    return "+".join(names)


def _arm(
    text: str,
    combination: str,
    plan: _Plan,
    made: dict[str, Defence],
    strategy: str | None,
) -> Arm:
    if combination not in made:
        try:
            made[combination] = plan.make(plan.options)
            check_strategies(made[combination].strategies)
            _check_data(plan)
        except ValueError as error:
            raise ValueError(f"arm {text!r}: {error}") from error
    return Arm(
        text,
        plan.kind.norm,
        plan.kind.gated,
        made[combination],
        plan.options,
        plan.make,
        plan.skeleton,
        strategy,
    )


def _check_data(plan: _Plan) -> None:
    """Refuses a defence that cannot be made of numbers which are data.

    Raises:
      ValueError: where a user's function looks at a number.
    """

    def make(options: Options) -> tuple[()]:
        plan.make(options)
        return ()

    try:
        jax.eval_shape(make, tuple(np.float32(value) for value in plan.options))
    except jax.errors.JAXTypeError as error:
        raise ValueError(
            "its numbers are data of a compiled function, and it looks at one of them "
            f"({type(error).__name__}): ask kljax.defences.is_concrete before"
        ) from error


def _at_update(named: str, make: Callable[..., Defence]) -> Callable[..., Defence]:
    def moved(sites: Sites, **options) -> Defence:
        defence = make(sites, **options)
        try:
            return defences.at_update(defence)
        except ValueError as error:
            raise ValueError(f"{named!r}: {error}") from None

    return moved


def check_upload(arm: Arm, upload: str) -> None:
    """Refuses an arm that acts on what is not uploaded.

    Args:
      arm: any.
      upload: ``gradient`` or ``update``, see `kljax.threat.Knowledge`.

    Raises:
      ValueError: for a transform of the whole update where a gradient is uploaded, one
        of each gradient that is to be undone where nobody sees any, and inputs of local
        steps that are to be simulated.
    """
    acts_on_update = arm.defence.update != defences.SEND_ALL
    if upload == "update" and arm.release_strategy == "undo" and not acts_on_update:
        raise ValueError(
            f"arm {arm.name!r}: what is done to the gradient of each local step cannot "
            "be undone, since the attacker sees the whole change alone: drop '/undo', "
            f"or let it act on the whole, as NAME{ON_UPDATE}"
        )
    if upload == "update" and arm.simulates_inputs:
        raise ValueError(
            f"arm {arm.name!r}: what takes the place of inputs in each local step is "
            "not simulated: drop '/simulate', or attack upload='gradient'"
        )
    if upload != "gradient" or not acts_on_update:
        return
    raise ValueError(
        f"arm {arm.name!r} acts on the whole change of a local training, and here a "
        f"gradient is attacked: write {arm.name.replace(ON_UPDATE, '')!r}, which acts "
        "on each gradient, in local training, too, or attack upload='update'"
    )


def unplaced_sites(paths: tuple[Path, ...] = ("site",)) -> Sites:
    """Makes sites for an arm that is read where no network is; no width is right."""
    widths = (1,) * len(paths)
    return Sites(paths, widths, key_lock(paths, widths))


def acts_on_release(text: str) -> bool:
    """Tells whether an arm as it is written changes what is sent.

    Raises:
      ValueError: for an unknown defence or option.
    """
    combination = text.partition("/")[0]
    plan = _plan(text, combination, unplaced_sites())
    return defences.changes_gradients(plan.make(plan.options))
