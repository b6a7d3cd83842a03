"""What a trained generator finds, with a gradient and without.

    python experiments/ggl.py [--victims 8] [--steps 5000] [--seed 0]

What: one image per victim, LeNet at 16x16, weights U(-.5, .5). Victims are images that
the generator was not trained on: digits and clothes with a generator of their own, and
clothes with that of digits, which can make none. GGL (CMA-ES, ``--steps`` evaluations)
and ``matching``, which looks among all pixels (2,000), with and without noise on the
gradient. Floors: *no gradient*, the generator's average image of the true class, which
is the best that it and the label can do alone; *best of the generator*, the nearest to
the truth of as many images as GGL tries, chosen by the truth itself, so no attack;
and the best floor of kljax, of each victim the one of the least MSE. Means over
victims, MSE of images in [0, 1].
"""

import argparse

import numpy as np
from studies.generator_guesses import guess_without_gradient

from kljax import LeakConfig, leak, score_rows
from kljax.metrics import ssim

SIDE = 16
ARMS = ("none", "gaussian-noise=0.01")
# data of the victims, generator
CASES = (
    ("digits", "digits"),
    ("fashion_mnist", "fashion_mnist"),
    ("fashion_mnist", "digits"),
)
HEAD = ("victims", "generator", "guess", "arm", "MSE", "SSIM", "own loss, median")


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--victims", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print("| " + " | ".join(HEAD) + " |\n" + "|---" * len(HEAD) + "|", flush=True)
    for data, generator in CASES:
        for line in case(data, generator, options):
            print(f"| {data} | {generator} | " + " | ".join(line) + " |", flush=True)


def case(data: str, generator: str, options):
    """Gives the lines of one kind of victims, from the guess on."""
    rows = []
    for attack, steps in (("ggl", options.steps), ("matching", 2000)):
        result = leak(
            LeakConfig(
                data=data,
                generator=generator,
                attack=attack,
                steps=steps,
                arms=ARMS,
                victims=options.victims,
                seed=options.seed,
                image_size=SIDE,
            )
        )
        rows = [row for row in score_rows(result)]
        for arm in ARMS:
            own = [row for row in rows if row["arm"] == arm]
            losses = [row["matching_loss"] for row in own]
            yield line(attack, arm, own, f"{np.median(losses):.1e}")
    victims = result.victims
    truth, labels = victims.inputs[:, 0], victims.labels[:, 0]
    guessed = guess_without_gradient(
        generator, truth, labels, draws=options.steps, seed=options.seed
    )
    for name, guesses in guessed.items():
        scored = [
            {"mse": float(np.mean((a - b) ** 2)), "ssim": float(ssim(a, b))}
            for a, b in zip(guesses, truth, strict=True)
        ]
        yield line(name, "-", scored, "-")
    floors = [row for row in rows if row["arm"].startswith("floor/")]
    nearest = [
        min((row for row in floors if row["victim"] == index), key=lambda r: r["mse"])
        for index in sorted({row["victim"] for row in floors})
    ]
    yield line("best floor of kljax", "-", nearest, "-")


def line(name: str, arm: str, rows: list[dict], loss: str) -> tuple[str, ...]:
    """Writes means over victims."""
    means = (np.mean([row[score] for row in rows]) for score in ("mse", "ssim"))
    return (name, arm, *(f"{mean:.4f}" for mean in means), loss)


if __name__ == "__main__":
    main()
