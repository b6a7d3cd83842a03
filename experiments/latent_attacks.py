"""What a generator gives an attacker: its latents, its features, its weights.

    python experiments/latent_attacks.py [--out runs/latent_attacks] [--victims 4]
        [--steps 1200] [--seed 0] [--only PART ...]

What: one digit per victim, enlarged to 16x16, LeNet, weights U(-.5, .5). The generator
is kljax's own of digits, which no victim was shown to. Every attack has as many
evaluations, 1,200 of one start: GGL by CMA-ES and by Adam (its two descents), GIAS,
GIFD, and, among pixels, Inverting Gradients and `matching`. One evaluation of CMA-ES
takes a first-order gradient, of the others a second-order one.

Parts are ATTACK-GROUP. Groups:

- upload: nothing, noise, clipping, pruning and Soteria, at one program: each is the
  chain of all four, with the others at numbers that change nothing.
- unaware: the same for an attacker who does to its candidates nothing of that.
- estimate: for one who is not told what was done, and reads it off the upload.
- norm, lock-random, lock-gates, lock-known: the norm alone; a key-lock whose private
  key is drawn by the attacker, whose gates are regressed, and that is known.
- clothes: victims of fashion_mnist (`kljax data prepare fashion_mnist`), and still the
  generator of digits; *searched* is a search for the generator's classes, too.
- clothes-lock: the same behind a key-lock whose gates are regressed.

A part that is done is kept in OUT and not done again; what is missing is "not run".
The table is of all parts that are there. Budget, said beforehand: ten minutes of a
processor for all parts of four victims but those of clothes. Numbers last obtained:
latent_attacks.md.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np
from studies.generator_guesses import guess_without_gradient
from tabulate import tabulate

from kljax import LeakConfig, leak, score_rows
from kljax.core.files import write_text
from kljax.metrics import ssim

SIDE = 16
# -- who attacks ----------------------------------------------------------------------
ATTACKS = {
    "ggl-cma": {"attack": "ggl"},
    "gifd": {"attack": "gifd"},
    "matching": {"attack": "matching"},
    "gias": {"attack": "gias"},
    "ggl-adam": {
        "attack": "ggl",
        "optimiser": "adam",
        "attack_options": ("deviation=1",),
    },
    "inverting-gradients": {"attack": "inverting-gradients"},
    "ggl-cma searched": {"attack": "ggl", "attack_options": ("classes=searched",)},
    "gifd searched": {"attack": "gifd", "attack_options": ("classes=searched",)},
}
# -- what is done to the upload --------------------------------------------------------
NOTHING = {
    "norm-clipping": "1e9",
    "magnitude-pruning": "0",
    "soteria": "0",
    "gaussian-noise": "0",
}
UPLOADS = {
    "none": {},
    "noise .01": {"gaussian-noise": "0.01"},
    "noise .1": {"gaussian-noise": "0.1"},
    "clipping 1": {"norm-clipping": "1"},
    "pruning .9": {"magnitude-pruning": "0.9"},
    "soteria .8": {"soteria": "0.8"},
}


def chained(strategy: str, names=UPLOADS) -> dict[str, str]:
    """Writes each as a chain, with what the attacker does about it."""
    return {
        name: "+".join(f"{k}={v}" for k, v in (NOTHING | UPLOADS[name]).items())
        + strategy
        for name in names
    }


CHANGED = ("clipping 1", "pruning .9", "soteria .8")
GROUPS = {
    "upload": chained(""),
    "unaware": chained("/unaware", CHANGED),
    "estimate": chained("/estimate"),
    "lock-gates": {"lock": "keylock/regress_gates"},
    "lock-random": {"lock": "keylock/fixed_random"},
    "norm": {"norm alone": "bn-control"},
    "lock-known": {"lock": "keylock/known"},
    "clothes": {"none": "gaussian-noise=0", "noise .1": "gaussian-noise=0.1"},
    "clothes-lock": {"lock": "keylock/regress_gates"},
}
# Victims that the generator was not trained for.
CLOTHES = {"data": "fashion_mnist", "split": "test"}
SEARCHED = ("ggl-cma searched", "gifd searched")
# In the order in which they are done.
FIRST = ("ggl-cma", "gifd", "matching")
PARTS = [(attack, "upload") for attack in ATTACKS if attack not in SEARCHED]
PARTS += [(attack, "lock-gates") for attack in FIRST]
PARTS += [(attack, "unaware") for attack in FIRST]
PARTS += [(attack, "estimate") for attack in FIRST[:2]]
PARTS += [
    (attack, group)
    for group in ("lock-random", "norm", "lock-known")
    for attack in FIRST
]
PARTS += [(attack, "clothes") for attack in (*FIRST, "gias", *SEARCHED)]
PARTS += [(attack, "clothes-lock") for attack in (*FIRST, "gias", *SEARCHED)]
HEAD = ("attack", "attacker", "upload", "MSE", "SSIM", "own loss", "labels", "stage")


def config(attack: str, group: str, options) -> LeakConfig:
    """Makes the study of a part."""
    victims = CLOTHES if group.startswith("clothes") else {"data": "digits"}
    return LeakConfig(
        **victims,
        generator="digits",
        arms=tuple(GROUPS[group].values()),
        steps=options.steps,
        victims=options.victims,
        seed=options.seed,
        image_size=SIDE,
        **ATTACKS[attack],
    )


def lines(attack: str, group: str, options) -> list[list[str]]:
    """Attacks, and gives the lines of the table."""
    rows = score_rows(leak(config(attack, group, options)))
    found = []
    for name, arm in GROUPS[group].items():
        own = [row for row in rows if row["arm"] == arm]
        stages = [row["stage"] for row in own if row.get("stage") is not None]
        most = max(stages, default=0)
        counted = " ".join(str(stages.count(i)) for i in range(1 + most))
        found.append(
            [
                attack,
                group,
                name,
                *(f"{np.mean([r[x] for r in own]):.4f}" for x in ("mse", "ssim")),
                f"{np.median([row['matching_loss'] for row in own]):.1e}",
                f"{np.mean([row['label_accuracy'] for row in own]):.0%}",
                counted if stages else "-",
            ]
        )
    return found


def floors(group: str, options) -> list[list[str]]:
    """Scores what is made without a gradient; the truth chooses the best of them."""
    # Victims and floors are the same under any attack: a short one.
    short = dataclasses.replace(
        config("ggl-cma", group, options), arms=("none",), steps=50
    )
    result = leak(short)
    rows = score_rows(result)
    truth, labels = result.victims.inputs[:, 0], result.victims.labels[:, 0]
    made = guess_without_gradient(
        "digits", truth, labels, draws=options.steps, seed=options.seed
    )
    found = []
    for name, guesses in made.items():
        pairs = list(zip(guesses, truth, strict=True))
        mse = np.mean([float(np.mean((a - b) ** 2)) for a, b in pairs])
        alike = np.mean([float(ssim(a, b)) for a, b in pairs])
        found.append([name, group, "-", f"{mse:.4f}", f"{alike:.4f}", "-", "-", "-"])
    given = [row for row in rows if row["arm"].startswith("floor/")]
    nearest = [
        min((row for row in given if row["victim"] == index), key=lambda r: r["mse"])
        for index in sorted({row["victim"] for row in given})
    ]
    means = (f"{np.mean([row[x] for row in nearest]):.4f}" for x in ("mse", "ssim"))
    found.append(["best floor of kljax", group, "-", *means, "-", "-", "-"])
    return found


def main():
    """Does the parts that are missing, and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/latent_attacks"))
    parser.add_argument("--victims", type=int, default=4)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="parts, as ATTACK-GROUP")
    options = parser.parse_args()
    folder = options.out / f"{options.victims}-{options.steps}-{options.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    table = []
    for attack, group in (*PARTS, ("floors", "upload"), ("floors", "clothes")):
        name = f"{attack}-{group}".replace(" ", "-")
        path = folder / f"{name}.json"
        if not path.exists() and (options.only is None or name in options.only):
            made = (
                floors(group, options)
                if attack == "floors"
                else lines(attack, group, options)
            )
            write_text(path, json.dumps(made))
            print(name, flush=True)
        if path.exists():
            table += json.loads(path.read_text("utf-8"))
        else:
            table.append([attack, group, "not run", *["-"] * (len(HEAD) - 3)])
    print(tabulate(table, HEAD, tablefmt="pipe", disable_numparse=True))


if __name__ == "__main__":
    main()
