"""Whether trigger inversion finds a planted patch, and finds none where there is none.

    python experiments/planted_triggers.py [--seeds 3]

Each seed trains two networks of experiments/flip.py under the mean: one that clients 0
to 3 poison continuously with a patch of 2 x 2 towards class 0, and one of honest
clients. Triggers are looked for on training images that are drawn at random.

The first table is of triggers of whole classes, of 400 steps (the paper's) on 16 images
of each class: the size of a mask is the sum of its entries, in pixels of 64; IoU is
that of the pixels with more than half a mask and the patch; an anomaly index above 2 is
what Neural Cleanse calls a backdoor.

The second is of triggers of pairs, with the settings of FLIP in experiments/flip.py:
of how many pairs into class 0, and into the other classes, the trigger is small enough
to be stamped (an eighth of the image), and how much of the masks of those into class 0
lies in the patch. Of four pixels in 64, a mask at random has 6 %.
"""

import argparse
from typing import Any

import jax
import numpy as np
from tabulate import tabulate
from training.poisoned import FIXED, HONEST, POISON

from kljax import TrainConfig, TrainResult, train
from kljax.federated.trigger_inversion import (
    Inverted,
    anomaly_index,
    invert_triggers,
)
from kljax.parallel.compilation import use_cache

SIDE = 2  # of the patch
CLASSES = 10
NETWORKS = {"backdoor": (POISON.format("backdoor"),), "honest": HONEST}
SEARCHES = {  # by FLIPS of experiments/flip.py: steps, steps of a pair, examples
    "flip": {"steps": 200, "pair_steps": 80, "examples": 8},
    "flip, 60 steps": {"steps": 60, "pair_steps": 30, "examples": 4},
}
LARGEST = 1 / 8  # of the image
CLASS_HEAD = ("network", "seed", "attack success", "size of class 0")
CLASS_HEAD += ("median of others", "% of mask in the patch", "IoU")
CLASS_HEAD += ("index of class 0", "highest of others")
PAIR_HEAD = ("network", "seed", "search", "% into 0 stamped", "% of others stamped")
PAIR_HEAD += ("% of masks into 0 in the patch",)


def look(result: TrainResult, seed: int, **search: int) -> tuple[Inverted, Inverted]:
    """Looks for triggers of classes and of pairs in a network that was trained."""
    setup, server = result.setup, result.arms["none"].server
    data = setup.task.dataset
    chosen = np.random.default_rng(0).permutation(len(data))[:400]
    return invert_triggers(
        jax.random.key(seed),
        setup.task.models[False],
        server.public.model,
        server.stats,
        *data.fetch(np.sort(chosen)),
        classes=CLASSES,
        **search,
    )


def in_patch(masks: np.ndarray) -> np.ndarray:
    """Computes which share [...] of masks [..., H, W] lies in the patch."""
    return masks[..., -SIDE:, -SIDE:].sum((-2, -1)) / masks.sum((-2, -1))


def overlap(mask: np.ndarray) -> float:
    """Computes the IoU of the patch and what a mask [H, W] covers by half."""
    planted = np.zeros(mask.shape, bool)
    planted[-SIDE:, -SIDE:] = True
    covered = mask > 0.5
    return float((covered & planted).sum() / (covered | planted).sum())


def line_of_classes(found: Inverted) -> list[str]:
    """Writes how the trigger of class 0 differs from those of others."""
    mask = np.asarray(found.overlay.mask)[0, ..., 0]
    index = anomaly_index(found.size, mask.size)
    return [
        f"{found.size[0]:.1f}",
        f"{np.median(found.size[1:]):.1f}",
        f"{100 * in_patch(mask):.0f}",
        f"{overlap(mask):.2f}",
        f"{index[0]:.1f}",
        f"{index[1:].max():.1f}",
    ]


def line_of_pairs(pairs: Inverted) -> list[str]:
    """Writes which triggers of pairs FLIP would stamp."""
    masks = np.asarray(pairs.overlay.mask)[..., 0]  # [source, target, H, W]
    small = np.asarray(pairs.size) <= LARGEST * masks.shape[-1] * masks.shape[-2]
    off = ~np.eye(CLASSES, dtype=bool)
    into = off & (np.arange(CLASSES) == 0)
    chosen = small & into
    return [
        f"{100 * small[into].mean():.0f}",
        f"{100 * small[off & ~into].mean():.0f}",
        f"{100 * in_patch(masks[chosen]).mean():.0f}" if chosen.any() else "none",
    ]


def main() -> None:
    """Trains, looks, and prints both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    seeds = range(1, parser.parse_args().seeds + 1)
    use_cache()
    classes: list[list[Any]] = []
    pairs: list[list[Any]] = []
    for name, roles in NETWORKS.items():
        for seed in seeds:
            config = TrainConfig(
                roles=roles, trigger=f"patch={SIDE}", seed=seed, **FIXED
            )
            result = train(config)
            success = f"{100 * result.rows[-1]['attack_success']:.1f}"
            found, _ = look(result, seed, examples=16, steps=400, pair_steps=1)
            classes.append([name, seed, success, *line_of_classes(found)])
            for search, numbers in SEARCHES.items():
                _, found = look(result, seed, **numbers)
                pairs.append([name, seed, search, *line_of_pairs(found)])
    for rows, head in ((classes, CLASS_HEAD), (pairs, PAIR_HEAD)):
        print(tabulate(rows, head, tablefmt="github", disable_numparse=True), "\n")


if __name__ == "__main__":
    main()
