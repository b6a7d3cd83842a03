"""Which attacks there are, by name."""

from collections.abc import Callable
from typing import NamedTuple

from kljax.attacks.attack import Attack, Objective
from kljax.attacks.closed_form import rgap
from kljax.attacks.objectives import squared_l2
from kljax.attacks.presets.plain import dlg, matching
from kljax.registry import resolve


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
    "rgap": Preset(rgap, "recovered", None),
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
