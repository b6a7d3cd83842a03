"""Presets: a paper's attack as a composition, with the paper's values.

A preset is a function ``(Setting, optimiser=None, steps, restarts) -> Attack``; an
`optimiser` given replaces the paper's. The label strategy comes with the threat model;
`Preset.labels` is the one the attack is known for.
"""

from collections.abc import Callable
from typing import NamedTuple

from kljax.attacks.attack import (
    Attack,
    Objective,
    Optimiser,
    Prior,
    Setting,
    Unknowns,
    iterative,
    no_prior,
)
from kljax.attacks.labels import LABELS
from kljax.attacks.locks import lock_of
from kljax.attacks.objectives import squared_l2
from kljax.attacks.optimisers import adam, lbfgs, lbfgs_torch
from kljax.attacks.priors import total_variation
from kljax.attacks.simulation import replay
from kljax.attacks.starts import Start, normal
from kljax.attacks.unknowns import pixels
from kljax.registry import resolve
from kljax.typing import Array


def gradient_matching(
    setting: Setting,
    *,
    optimiser: Optimiser,
    steps: int,
    restarts: int,
    start: Start,
    prior: Prior = no_prior,
) -> Attack:
    """Composes the plainest gradient matching: pixels, squared distance."""
    lock = lock_of(setting)
    labels = LABELS[setting.threat.strategy.labels](setting)
    return iterative(
        Unknowns(pixels(setting, start), labels, lock.unknown),
        replay(setting, lock.gates),
        squared_l2(),
        optimiser,
        prior=prior,
        steps=steps,
        restarts=restarts,
        points=_divisor(steps),
    )


def _divisor(steps: int) -> int:
    """Finds the largest number of recorded points, at most 20, that divides steps."""
    return next(n for n in range(min(20, steps), 0, -1) if steps % n == 0)


# Chosen on victims of their own by the attacker's own loss:
# experiments/attack_settings.py.
RELATIVE_TV = 1e-2


def matching(
    setting: Setting,
    optimiser: Optimiser | None = None,
    *,
    steps: int,
    restarts: int,
    variation: float = RELATIVE_TV,
) -> Attack:
    """Makes kljax's default: DLG's objective, a guarded L-BFGS, a grey start.

    `variation` is the weight of the total variation relative to the image's spread.
    """
    return gradient_matching(
        setting,
        optimiser=optimiser or lbfgs(),
        steps=steps,
        restarts=restarts,
        start=normal(0.5, 0.1),
        prior=total_variation(variation, relative=True),
    )


def dlg(
    setting: Setting, optimiser: Optimiser | None = None, *, steps: int, restarts: int
) -> Attack:
    """Makes DLG: torch's fixed-step L-BFGS from N(0, 1).

    The paper's 300 calls of L-BFGS are at most 6,000 steps. Labels are optimised
    jointly there (threat strategy ``joint``).

    Reference: Zhu, Liu, Han, "Deep Leakage from Gradients" (NeurIPS 2019); code
    mit-han-lab/dlg, main.py.
    """
    return gradient_matching(
        setting,
        optimiser=optimiser or lbfgs_torch(),
        steps=steps,
        restarts=restarts,
        start=normal(0.0, 1.0),
    )


class Preset(NamedTuple):
    """An attack by name.

    Attributes:
      build: ``(Setting, optimiser=None, *, steps, restarts) -> Attack``.
      labels: the label strategy the attack is known for.
      objective: makes the attack's objective, for diagnostics; None where an attack
        has none.
    """

    build: Callable[..., Attack]
    labels: str
    objective: Callable[[], Objective] | None


PRESETS: dict[str, Preset] = {
    "matching": Preset(matching, "recovered", squared_l2),
    "dlg": Preset(dlg, "joint", squared_l2),
    # iDLG (Zhao, Mopuri, Bilen 2020) is DLG with the label read off first.
    "idlg": Preset(dlg, "recovered", squared_l2),
}


def find_preset(name: str) -> Preset:
    """Finds an attack by name, or as ``package.module:function`` of your own.

    Raises:
      ValueError: for an unknown name, with the nearest one.
    """
    found = resolve("attack", name, PRESETS)
    return found if isinstance(found, Preset) else of_user(found)


def of_user(build: Callable[..., Attack] | None) -> Preset:
    """Makes a preset of a user's function, of which nothing else is known."""
    return Preset(build, "recovered", None)


OPTIMISERS: dict[str, Callable[..., Optimiser]] = {
    "lbfgs": lbfgs,
    "lbfgs_torch": lbfgs_torch,
    "adam": adam,
}
# Those whose first argument by name is a step size.
STEPPED = ("lbfgs_torch", "adam")


def make_optimiser(name: str, step_size: float | Array | None = None) -> Optimiser:
    """Makes an optimiser by name, with its own step size if none is given.

    Args:
      name: out of `OPTIMISERS`, or ``package.module:function`` of your own, which is
        called with the step size if there is one.
      step_size: first step size, in units of the unknowns; it may be traced.

    Raises:
      ValueError: for an unknown name, or a step size where none is taken.
    """
    make = resolve("optimiser", name, OPTIMISERS)
    if step_size is None:
        return make()
    if name in STEPPED:
        return make(learning_rate=step_size)
    if name in OPTIMISERS:
        raise ValueError(
            f"optimiser {name!r} finds its own step sizes: leave step_size out, or "
            f"take one of {', '.join(STEPPED)}"
        )
    return make(step_size)
