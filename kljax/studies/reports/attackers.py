"""Attackers by what they know of a defence: rankings are made of each kind apart."""

from typing import Literal

from kljax.attacks.presets import PRESETS
from kljax.attacks.secrets import SECRETS, unit
from kljax.defences import as_given, as_sent, without_release
from kljax.defences.arms import Arm, last_transform
from kljax.studies.reports.threats import read_arm
from kljax.threat import NOTHING_HIDDEN

Attacker = Literal["unaware", "adaptive", "informed", "only"]
# In the order of tables: what is said of each.
ATTACKERS: dict[Attacker, str] = {
    "only": "there is nothing to know",
    "unaware": "does not use what it knows of the defence",
    "adaptive": "knows the defence, and nothing of what it hides",
    "informed": "is given what the defence hides, or a part of it",
}
HIDDEN = ("private_key", "lock_weights", "lock_grads")


def attacker_of(arm: str, attack: str) -> Attacker:
    """Tells what kind of attacker an arm has.

    Args:
      arm: as it is written, such as ``gaussian-noise=0.01/unaware``.
      attack: by name; one by the density of what is sent knows the noise, and one that
        learns from uploads that it simulates knows the defence.

    Raises:
      ValueError: for an arm of kljax's own defences that cannot be read.
    """
    read, _ = read_arm(arm)
    preset = PRESETS.get(attack)
    learns = preset is not None and preset.learn is not None
    if read.strategies is not NOTHING_HIDDEN:
        return _about_secret(read, learns)
    defence = read.defence
    if defence.inputs is not as_given:
        return "adaptive" if read.simulates_inputs else "unaware"
    hides, by_example = read.hides_entries, defence.per_example is not None
    if defence == without_release(defence) and not (hides or by_example):
        return "only"
    if read.release_strategy in ("unaware", "undo", "estimate"):
        return "unaware" if read.release_strategy == "unaware" else "adaptive"
    known = last_transform(defence).simulate is not as_sent or hides
    known |= defence.simulate_example is not None
    known |= learns or (preset is not None and preset.density)
    return "adaptive" if known else "unaware"


def _about_secret(arm: Arm, learns: bool) -> Attacker:
    strategy = arm.strategies[arm.secret_strategy]
    if any(field in HIDDEN for field in strategy.needs):
        return "informed"
    plain = SECRETS.get(strategy.name) is unit and strategy.omits is None
    return "unaware" if plain and not learns else "adaptive"
