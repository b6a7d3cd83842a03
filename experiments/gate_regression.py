"""Measures gate regression: what a key-lock is worth against who lacks the private key.

    python experiments/gate_regression.py [--attacks gate-regression matching]
        [--arms bn-control keylock/known ...] [--lock-init 0] [--victims 8]
        [--steps 600] [--seed 0] [--threat stats=visible]

What: one line per attack and arm, LeNet on digits. An attack is a preset, or
gate-regression:VARIATION:LAST:STATISTICS with other weights. Settings are chosen with
``--seed 1000``, on victims that no study uses, by the matching losses; scores stand
beside them for the reader. Results, and the one weight of which that is not true:
experiments/gate_regression.md.
"""

import argparse
import functools
import time

import numpy as np

from kljax import LeakConfig, leak, score_rows
from kljax.attacks.presets import PRESETS, gate_regression

ARMS = ("bn-control", "keylock/known", "keylock/regress_gates", "keylock/fixed_random")
HEAD = (
    "attack",
    "lock init",
    "arm",
    "loss median",
    "loss mean (geometric)",
    "at truth",
    "SSIM",
    "SSIM affine",
    "lowest to highest",
    "seconds",
)


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--attacks", nargs="+", default=("gate-regression",))
    parser.add_argument("--arms", nargs="+", default=ARMS)
    parser.add_argument("--lock-init", type=float, nargs="+", default=(0.0,))
    parser.add_argument("--victims", type=int, default=8)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threat", nargs="*", default=())
    options = parser.parse_args()
    print("| " + " | ".join(HEAD) + " |\n" + "|---" * len(HEAD) + "|", flush=True)
    for attack in options.attacks:
        for lock_init in options.lock_init:
            for arm in options.arms:
                print(line(attack, lock_init, arm, options), flush=True)


def line(attack: str, lock_init: float, arm: str, options) -> str:
    """Attacks one arm; gives a row of the table."""
    if ":" in attack:
        variation, last, statistics = map(float, attack.split(":")[1:])
        build = functools.partial(
            gate_regression,
            variation=variation,
            last_variation=last,
            statistics=statistics,
        )
        PRESETS[attack] = PRESETS["gate-regression"]._replace(build=build)
    began = time.perf_counter()
    config = LeakConfig(
        arms=(arm,),
        attack=attack,
        lock_init=lock_init,
        victims=options.victims,
        steps=options.steps,
        seed=options.seed,
        threat=tuple(options.threat),
    )
    rows = [row for row in score_rows(leak(config)) if row["arm"] == arm]
    losses, truths, plain, affine = (
        np.array([row[column] for row in rows])
        for column in (
            "matching_loss",
            "matching_loss_at_truth",
            "ssim",
            "ssim_affine_oracle",
        )
    )
    cells = (
        attack,
        f"{lock_init:g}",
        arm,
        f"{np.median(losses):.1e}",
        f"{np.exp(np.log(losses).mean()):.1e}",
        f"{np.median(truths):.0e}",
        f"{plain.mean():.3f}",
        f"{affine.mean():.3f}",
        f"{affine.min():.2f} to {affine.max():.2f}",
        f"{time.perf_counter() - began:.0f}",
    )
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
