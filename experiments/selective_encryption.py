"""How much leaks of a gradient of which a share is encrypted, by which score?

    python experiments/selective_encryption.py [--victims 16] [--steps 600] [--size 16]
        [--seed 0] [--scores ...] [--shares ...] [--figure FILE]

What: the preset `matching`, labels given, on gradients of one digit in an untrained
LeNet, of which the entries with the largest scores are hidden
(`kljax.defences.selective`), at several shares. The attacker knows which entries those
are and matches the others; one who does not know it, and matches zeros, is the control
(``unaware``, the score magnitude alone). All arms have the same victims, weights and
starts. Recovered: images of that outcome, with Wilson's interval; SSIM: mean over
victims with an interval over victims; both beside the arm without a defence, and beside
floors that are made without any gradient. Visible: entries that are left, of all.
Label: how often the rule `idlg` reads the label off the entries that are left
(``unknown``: how often it says that it cannot).

Results: experiments/selective_encryption.md.
"""

import argparse
import time

import jax.numpy as jnp
import matplotlib.figure
import numpy as np
from tabulate import tabulate

from kljax import LeakConfig, leak, metrics, score_rows
from kljax.attacks import Reconstruction, idlg
from kljax.defences.selective import SCORES
from kljax.parallel import use_all_cores

SHARES = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0)
UNAWARE = "magnitude, unaware"


def main():
    """Prints the tables and draws the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--victims", type=int, default=16)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scores", nargs="+", default=list(SCORES), choices=SCORES)
    parser.add_argument("--shares", nargs="+", type=float, default=list(SHARES))
    parser.add_argument("--figure", default="experiments/selective_encryption.png")
    options = parser.parse_args()
    use_all_cores()

    arms = {("none", 0.0): "none"}
    for score in options.scores:
        for share in options.shares:
            arms[score, share] = f"selective-{score}={share:g}"
    if "magnitude" in options.scores:
        for share in options.shares:
            arms[UNAWARE, share] = f"selective-magnitude={share:g}/unaware"

    rows = score_rows(leak(study(options, arms.values(), labels="given")))
    told = [text for (score, _), text in arms.items() if score != UNAWARE]
    changes = {"attack": f"{__name__}:label_alone", "labels": "recovered"}
    labels = score_rows(leak(study(options, told, **changes)))

    lines = {key: line(text, rows, labels) for key, text in arms.items()}
    floors = {
        name: np.mean([row["ssim"] for row in rows if row["arm"] == f"floor/{name}"])
        for name in metrics.FLOORS
        if any(row["arm"] == f"floor/{name}" for row in rows)
    }
    print(table(lines))
    print("\nSSIM of floors: ", end="")
    print(", ".join(f"{name} {value:.3f}" for name, value in floors.items()))
    draw(lines, max(floors.values()), options)
    print(f"\n{time.process_time():.0f} processor seconds")


def label_alone(setting, optimiser=None, *, steps=None, restarts=None):
    """Makes an attack that reads the label, and for an image gives a grey one."""
    del optimiser, steps, restarts

    def attack(rng, view):
        return Reconstruction(
            inputs=jnp.full((1, *setting.task.image_shape), 0.5),
            labels=idlg(setting, view),
            loss=jnp.zeros(()),
            finite=jnp.array(True),
            info={},
        )

    return attack


def study(options, arms, **changes):
    """Makes the configuration of a study of some arms."""
    settings = {"steps": options.steps} | changes
    return LeakConfig(
        data="digits",
        image_size=options.size,
        model="lenet",
        arms=tuple(arms),
        victims=options.victims,
        seed=options.seed,
        **settings,
    )


def line(text, rows, labels):
    """Summarises one arm."""
    own = [row for row in rows if row["arm"] == text]
    groups = np.array([row["group"] for row in own])
    right = np.array([float(row["outcome"] == "recovered") for row in own])
    ssim = np.array([row["ssim"] for row in own])
    read = [row for row in labels if row["arm"] == text]
    return {
        "recovered": metrics.interval(right, groups, rate=True),
        "ssim": metrics.interval(ssim, groups, rate=False),
        "visible": np.mean([row["visible_share"] for row in own]),
        "label": np.mean([row["label_accuracy"] for row in read]) if read else None,
        "unknown": np.mean([row["label_guess"] < 0 for row in read]) if read else None,
    }


def table(lines):
    """Lays out a line per score and share."""
    head = ["score", "encrypted", "visible", "recovered [95 %]", "SSIM [95 %]"]
    head += ["label", "unknown"]
    body = [
        [
            score,
            f"{share:.0%}",
            f"{made['visible']:.1%}",
            written(made["recovered"], ".0%"),
            written(made["ssim"], ".3f"),
            *(
                "-" if made[name] is None else f"{made[name]:.0%}"
                for name in ("label", "unknown")
            ),
        ]
        for (score, share), made in lines.items()
    ]
    return tabulate(body, head, tablefmt="github", disable_numparse=True)


def written(found, form):
    """Writes an estimate with its interval."""
    low, high = found[1:3]
    return f"{found.estimate:{form}} [{low:{form}}, {high:{form}}]"


def draw(lines, floor, options):
    """Draws recovered rate and SSIM over the encrypted share."""
    figure = matplotlib.figure.Figure(figsize=(10, 3.8), layout="constrained")
    axes = figure.subplots(1, 2)
    scores = dict.fromkeys(score for score, _ in lines if score != "none")
    places = np.arange(1 + len(options.shares))
    for axis, name in zip(axes, ("recovered", "ssim"), strict=True):
        for score in scores:
            made = [lines["none", 0.0], *(lines[score, s] for s in options.shares)]
            values = np.array([one[name][:3] for one in made])
            style = "--" if score == UNAWARE else "-"
            (drawn,) = axis.plot(places, values[:, 0], style, marker="o", ms=3)
            if name == "ssim":  # those of rates would cover each other
                axis.fill_between(
                    places, *values[:, 1:].T, color=drawn.get_color(), alpha=0.15, lw=0
                )
            drawn.set_label(score)
        axis.set_xticks(places, ["0", *(f"{share:g}" for share in options.shares)])
        axis.set_xlabel("share to encrypt, as asked for (not to scale)")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("share of images recovered")
    axes[1].set_ylabel("SSIM")
    axes[1].axhline(
        floor, color="grey", lw=1, ls=":", label="best floor (of these victims)"
    )
    figure.legend(
        *axes[1].get_legend_handles_labels(),
        loc="outside right upper",
        fontsize=8,
        frameon=False,
    )
    figure.savefig(options.figure, dpi=120)


if __name__ == "__main__":
    main()
