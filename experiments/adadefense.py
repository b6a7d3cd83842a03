"""What AdaDefense hides, by what the attacker knows of it; and what its past tells.

    python experiments/adadefense.py [--victims 8] [--steps 1000] [--size 8]

Results: experiments/adadefense.md. One victim is one image of digits; a network of
dense layers, drawn afresh; Inverting Gradients, which compares directions alone. Arms:
no defence; the gradient shortened to the length that the stand-in has, which is the
matched control; the stand-in as in the official code, and one of size 1 with a larger
eps, which is smooth. Each against three attackers: ``simulate`` does to its candidate's
gradient what the defence does, ``undo`` solves what it sees for the gradient,
``unaware`` takes what it sees for the gradient. `earlier` is how many gradients the
client has sent before, of which the server has a record.
"""

import argparse
import dataclasses

import jax
import numpy as np

from kljax import LeakConfig, leak, score_rows
from kljax.parallel import Layout
from kljax.studies.builder.study import build_study

OFFICIAL, SMOOTH = "adadefense", "adadefense=1,0.9,0.999,0.001"
ATTACKERS = ("simulate", "undo", "unaware")
COLUMNS = ("earlier", "arm", "recovered", "SSIM", "PSNR")


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--victims", type=int, default=8)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--size", type=int, default=8)
    parser.add_argument("--model", default="dense")
    parser.add_argument("--earlier", type=int, nargs="+", default=(0, 1))
    options = parser.parse_args()
    config = LeakConfig(
        model=options.model,
        image_size=options.size,
        victims=options.victims,
        steps=options.steps,
        arms=("none",),
        attack="inverting-gradients",
        layout=Layout("chunked", options.victims),
    )
    control = f"norm-clipping={1e-3 * count_parameters(config) ** 0.5:.3g}"
    stand_ins = tuple(f"{arm}/{a}" for arm in (OFFICIAL, SMOOTH) for a in ATTACKERS)
    print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|")
    for earlier in options.earlier:
        # What has no memory sends the same whatever was sent before.
        arms = stand_ins if earlier else ("none", control, *stand_ins)
        study = dataclasses.replace(config, arms=arms, earlier=earlier)
        rows = score_rows(leak(study))
        for arm in arms:
            print(line(earlier, arm, [row for row in rows if row["arm"] == arm]))


def count_parameters(config: LeakConfig) -> int:
    """Counts the parameters of the network of a study."""
    params, _ = build_study(config).attacks[0].setting.task.shapes()
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def line(earlier: int, arm: str, rows: list) -> str:
    """Writes one arm; recovered up to brightness and contrast is recovered, too."""
    recovered = sum(row["outcome"].startswith("recovered") for row in rows)
    ssim, psnr = (np.mean([row[name] for row in rows]) for name in ("ssim", "psnr"))
    cells = (
        earlier,
        f"`{arm}`",
        f"{recovered}/{len(rows)}",
        f"{ssim:.3f}",
        f"{psnr:.1f}",
    )
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    main()
