"""A study's denoiser: found by name, with the strength at which it is used."""

import functools
import math
from pathlib import Path
from typing import NamedTuple

from kljax.attacks.denoising import RULES
from kljax.core.denoiser import Denoiser, check_denoiser
from kljax.core.registry import call_named, nearest, resolve
from kljax.models import flows


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
    name, known = parse_denoise(text).name, flows.list_flows()
    if name.endswith(".npz") or name in known:
        path = Path(name) if name.endswith(".npz") else flows.FOLDER / f"{name}.npz"
        return _read(path.resolve(), path.stat().st_mtime_ns)
    function = resolve("denoiser", name, dict.fromkeys(known))
    denoiser = call_named("denoiser", name, function)
    if not isinstance(denoiser, Denoiser):
        raise ValueError(
            f"denoiser {name!r} gave {type(denoiser).__name__}, expected a "
            "kljax.core.denoiser.Denoiser"
        )
    check_denoiser(denoiser, name)
    return denoiser


@functools.lru_cache(maxsize=8)
def _read(path: Path, changed: int) -> Denoiser:
    """Reads a flow; a sweep asks for the same one in every cell."""
    del changed  # part of the cache's index
    denoiser = flows.read_flow(path)
    check_denoiser(denoiser, str(path))
    return denoiser
