"""A study's denoiser: found by name, with the strength at which it is used."""

import math
from typing import NamedTuple

from kljax.attacks.denoising import RULES
from kljax.core.denoiser import Denoiser, check_denoiser
from kljax.core.registry import nearest
from kljax.models import flows
from kljax.studies.builder.trained import Kept, find_trained

KEPT = Kept("denoiser", Denoiser, flows.FOLDER, flows.read_flow, check_denoiser)


class Written(NamedTuple):
    """What ``NAME[=STRENGTH]`` says.

    Attributes:
      name: of the denoiser.
      strength: a number from 0 on, or a name in `kljax.attacks.denoising.RULES`.
    """

    name: str
    strength: float | str

    @property
    def program(self) -> str:
        """Writes what a compiled program depends on: numbers are its data."""
        rule = self.strength if isinstance(self.strength, str) else "number"
        return f"{self.name}={rule}"


def parse_denoise(text: str) -> Written:
    """Reads ``NAME[=STRENGTH]``; without a strength it is estimated.

    Raises:
      ValueError: for a strength that is neither a number from 0 on nor a rule.
    """
    name, written, strength = text.partition("=")
    if not written or strength in RULES:
        return Written(name, strength or "estimated")
    try:
        number = float(strength)
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise ValueError(
            f"denoise {text!r}: strength {strength!r} is neither a number from 0 on "
            f"nor one of {', '.join(RULES)}{nearest(strength, RULES)}"
        )
    return Written(name, number)


def find_denoiser(text: str | None) -> Denoiser | None:
    """Finds the denoiser that a study's attacker has.

    Raises:
      FileNotFoundError: if its file is not there.
      ValueError: for an unknown name, a damaged file, a function of your own that gives
        no `Denoiser`, and one whose flow is not what it says.
    """
    if text is None:
        return None
    return find_trained(parse_denoise(text).name, KEPT)
