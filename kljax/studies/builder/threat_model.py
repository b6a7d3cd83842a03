"""The threat model of an arm of a study."""

from typing import Any

from kljax import threat
from kljax.attacks.presets import Preset
from kljax.defences.arms import Arm
from kljax.studies.config import LeakConfig

# Facts that are options of a study, and which.
INSTEAD = {"examples": "examples", "clients": "average_clients"}


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
    upload = config.upload if config.average_clients is None else "average"
    facts |= {
        "examples": config.victim_examples,
        "upload": upload,
        "clients": config.average_clients or 1,
    }
    needs = arm.strategies[strategy.secret].needs
    if config.from_run is not None and "initial" in needs.get("lock_weights", ()):
        # After round 0 the client has moved on, and the server has not seen it.
        facts["lock_weights"] = "initial"
    for fact in config.threat:
        field, equals, value = fact.partition("=")
        if not equals:
            raise ValueError(f"threat fact {fact!r}: write it as field=value")
        if field in INSTEAD:
            raise ValueError(
                f"threat fact {field!r}: set the option {INSTEAD[field]} instead"
            )
        if (field, value) == ("upload", "average") and upload != "average":
            raise ValueError(
                f"threat fact {fact!r}: of how many clients? Set the option "
                "average_clients, such as average_clients=4"
            )
        if field == "upload" and value != upload:
            raise ValueError(
                f"threat fact {fact!r}: what is seen of the victims of this study "
                f"follows from its options upload and average_clients, upload={upload}"
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
