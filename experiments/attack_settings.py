"""Chooses the settings of attacks by the attacker's own loss.

    python experiments/attack_settings.py [--only SETTING ...] [--victims 8]
        [--steps 1000]

What: numbers of presets for which no paper has a value (the weight of the relative
total variation in `matching`; the rates at which unknown gates are moved), and beside
them the step sizes for which papers do have one. Victims are those of seed 1000, which
no part of the study uses, LeNet on digits; a table per setting, a line per value and
arm. The rule: the value with the lowest geometric mean over arms of the median matching
loss, which is all that an attacker sees. The scores beside it are there for the reader
and choose nothing. Results: experiments/attack_settings.md.
"""

import argparse
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from kljax import LeakConfig, leak, score_rows
from kljax.attacks import optimisers
from kljax.attacks.presets import PRESETS
from kljax.parallel import use_all_cores


class Setting(NamedTuple):
    """One number of one attack.

    Attributes:
      attack: the preset.
      values: that are tried; the first is the one that the preset has.
      arms: that are attacked.
      options: ``(value, steps) -> keyword arguments of the preset``.
    """

    attack: str
    values: tuple[float, ...]
    arms: tuple[str, ...]
    options: Callable[[float, int], dict[str, Any]]


WITHOUT, REGRESSED = ("none", "bn-control"), ("keylock/regress_gates",)
RATES, LOCK_RATES = (0.1, 0.01, 0.03, 0.3), (0.05, 0.005, 0.5)


def signed(name: str) -> Callable[[float, int], dict[str, Any]]:
    """Gives Inverting Gradients' optimiser with another rate of that name."""
    return lambda value, steps: {
        "optimiser": optimisers.sign_adam(**{name: value}, steps=steps)
    }


def plain(name: str) -> Callable[[float, int], dict[str, Any]]:
    """Gives TAG's optimiser with another rate of that name."""
    return lambda value, steps: {"optimiser": optimisers.adam(**{name: value})}


SETTINGS = {
    "matching-variation": Setting(
        "matching",
        (1e-2, 0.0, 1e-5, 1e-4, 1e-3, 3e-2, 1e-1),
        (*WITHOUT, "keylock/known", *REGRESSED),
        lambda value, steps: {"variation": value},
    ),
    "ig-rate": Setting("inverting-gradients", RATES, WITHOUT, signed("learning_rate")),
    "ig-lock-rate": Setting(
        "inverting-gradients", LOCK_RATES, REGRESSED, signed("secret_rate")
    ),
    "tag-rate": Setting("tag", RATES, WITHOUT, plain("learning_rate")),
    "tag-lock-rate": Setting("tag", LOCK_RATES, REGRESSED, plain("secret_rate")),
    "grnn-rate": Setting(
        "grnn",
        (1e-4, 1e-5, 1e-3),
        WITHOUT,
        lambda value, steps: {"learning_rate": value},
    ),
    "grnn-lock-rate": Setting(
        "grnn",
        (1e-3, 1e-4, 1e-2),
        REGRESSED,
        lambda value, steps: {"secret_rate": value},
    ),
}


def main():
    """Prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--victims", type=int, default=8)
    parser.add_argument("--steps", type=int, default=1000)
    options = parser.parse_args()
    use_all_cores()
    for name in options.only:
        print(f"\n## {name}\n")
        print("| value | arm | median matching loss | mean SSIM | mean SSIM affine |")
        print("|---|---|---|---|---|")
        for value in SETTINGS[name].values:
            attempt(SETTINGS[name], value, options.victims, options.steps)


def attempt(setting: Setting, value: float, victims: int, steps: int) -> None:
    """Attacks with one value, and prints its lines."""
    preset = PRESETS[setting.attack]
    name = f"{setting.attack} {value:g}"
    build = functools.partial(preset.build, **setting.options(value, steps))
    PRESETS[name] = preset._replace(
        build=lambda ground, optimiser, **options: build(ground, **options)
    )
    config = LeakConfig(
        arms=setting.arms, attack=name, victims=victims, steps=steps, seed=1000
    )
    rows, losses = score_rows(leak(config)), []
    for arm in setting.arms:
        mine = [row for row in rows if row["arm"] == arm]
        losses.append(np.median([row["matching_loss"] for row in mine]))
        scores = (
            np.mean([row[column] for row in mine])
            for column in ("ssim", "ssim_affine_oracle")
        )
        shown = " | ".join(f"{score:.3f}" for score in scores)
        print(f"| {value:g} | {arm} | {losses[-1]:.1e} | {shown} |", flush=True)
    mean = np.exp(np.log(losses).mean())
    print(f"| {value:g} | geometric mean | {mean:.1e} | | |", flush=True)


if __name__ == "__main__":
    main()
