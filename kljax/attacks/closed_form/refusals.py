"""Refusals: what a closed form would have to ignore, or trips over.

Each raises a `ValueError` that names the attack, while the attack is being made.
"""

from kljax.attacks.setting import Setting
from kljax.core.types import Path


def refuse_batches(setting: Setting, attack: str) -> None:
    """Refuses everything but the gradient of one example."""
    knows = setting.threat.knowledge
    if (knows.examples, knows.upload) != (1, "gradient"):
        raise ValueError(
            f"{attack} inverts the gradient of one example, the threat model has "
            f"examples={knows.examples}, upload={knows.upload!r}"
        )


def refuse_search(setting: Setting, attack: str, other: str) -> None:
    """Refuses secret strategies that optimise; `other` is an attack that searches."""
    strategy = setting.threat.strategy.secret
    if setting.threat.about_secret.unknown is not None:
        raise ValueError(
            f"{attack} is a closed form, and knows strategies about key-locks alone, "
            f"not the defence's own {strategy!r}: take the attack {other!r}"
        )
    if strategy.startswith("regress"):
        raise ValueError(
            f"{attack} is a closed form, and secret strategy {strategy!r} optimises: "
            f"take another, such as 'peel', or the attack {other!r}"
        )


def refuse_no_chain(setting: Setting, attack: str) -> None:
    """Refuses networks of fewer than two layers that simply follow each other."""
    if len(setting.task.chain) < 2:
        raise ValueError(
            f"{attack} walks a chain of layers, and this network is none: it "
            "takes two at least, and skip connections, pooling and ReLU have no place"
        )


def refuse_no_bias(setting: Setting, attack: str, layer: Path, hint: str = "") -> None:
    """Refuses networks where a layer lacks the bias that its input is read by."""
    params, _ = setting.task.shapes()
    if f"{layer}/bias" not in params:
        raise ValueError(
            f"{attack} needs a bias in the layer {layer!r}, and there is none{hint}"
        )
