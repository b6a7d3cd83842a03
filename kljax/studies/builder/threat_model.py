"""The threat model of an arm of a study."""

from typing import Any

from kljax import threat
from kljax.attacks.presets import Preset
from kljax.defences.arms import Arm
from kljax.studies.config import LeakConfig


def declare_threat(config: LeakConfig, arm: Arm, preset: Preset) -> threat.ThreatModel:
    """Declares the threat model of an arm: the least knowledge that it needs.

    Args:
      config: of the study.
      arm: the defence, and what is done about what it hides.
      preset: the attack: its label strategy, in place of which the study may have
        another, and what it needs to know.

    Raises:
      IllegalThreat: for knowledge too small for the strategy or the attack.
      ValueError: for a fact that does not exist or contradicts the study.
    """
    strategy = threat.Strategy(
        secret=arm.secret_strategy, labels=config.labels or preset.labels
    )
    if config.label_rule != "auto" and strategy.labels != "recovered":
        raise ValueError(
            f"label_rule={config.label_rule!r} needs labels='recovered', and they are "
            f"{strategy.labels!r} here"
        )
    facts: dict[str, Any] = dict(preset.needs)
    facts |= {"examples": config.examples, "upload": config.upload}
    needs = arm.strategies[strategy.secret].needs
    if config.from_run is not None and "initial" in needs.get("lock_weights", ()):
        # After round 0 the client has moved on, and the server has not seen it.
        facts["lock_weights"] = "initial"
    for fact in config.threat:
        field, equals, value = fact.partition("=")
        if not equals:
            raise ValueError(f"threat fact {fact!r}: write it as field=value")
        if field == "examples":
            raise ValueError("threat fact 'examples': set the option examples instead")
        if field == "upload" and value != config.upload:
            raise ValueError(
                f"threat fact {fact!r}: victims of this study upload what the option "
                f"upload says, upload={config.upload}"
            )
        if (field, value, config.upload) == ("victim_norm", "eval", "update"):
            raise ValueError(
                f"threat fact {fact!r}: local training runs norm layers in train mode"
            )
        facts[field] = value
    declared = threat.least_knowledge(strategy, arm.strategies, **facts)
    needs = dict(preset.needs)
    if preset.inserts is not None:  # a user's preset may have forgotten to say so
        needs["server"] = "malicious"
    for field, value in needs.items():
        have = getattr(declared.knowledge, field)
        if have != value:
            raise threat.IllegalThreat(
                f"attack {config.attack!r} needs {field}={value!r}, but the threat "
                f"model says {field}={have!r}"
            )
    return declared
