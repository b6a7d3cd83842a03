"""What clipping of single examples does to the direction of descent.

    python experiments/clipping_geometry.py [--examples 256] [--draws 32]

Results: experiments/clipping_geometry.md. The first table is the example of two points
of Chen, Wu and Hong (NeurIPS 2020): the expected move at some points, and where descent
ends. The others are of real gradients: LeNet on digits, fresh and after training, every
example's gradient at the same weights. Bounds are quantiles of the gradients' lengths,
and noise before the clipping has a length in units of the median gradient's.
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import norm

from kljax import TrainConfig
from kljax.core.types import Private, Public
from kljax.defences import chain, example_clipping, none, pre_clip_noise
from kljax.federated.clients import local_gradient
from kljax.studies.builder.run_setup import arm_rounds, start
from kljax.studies.training import train

POINTS = np.array([-3.0, 3.0])  # of the example
BOUND = 1.0
STDS = (0.0, 1.0, 3.0)  # of its noise before the clipping
QUANTILES = (0.1, 0.5, 0.9)
LENGTHS = (0.0, 0.3, 1.0, 3.0)  # of the noise, beside the median gradient
SIGNS = 200  # symmetric samples that a sample is held against


# --- the example of two points -----------------------------------------------------


def mean_move(x: float, std: float) -> float:
    """Computes E mean_i clip((x - a_i) / 2 + N(0, std^2)) exactly.

    f(x) = mean_i (x - a_i)^2 / 4, whose gradient is x / 2.
    """
    grads = (x - POINTS) / 2
    if std == 0:
        return float(np.mean(np.clip(grads, -BOUND, BOUND)))
    low, high = (-BOUND - grads) / std, (BOUND - grads) / std
    below, above = norm.cdf(low), norm.sf(high)
    between = grads * (1 - below - above) - std * (norm.pdf(high) - norm.pdf(low))
    return float(np.mean(BOUND * (above - below) + between))


def end_of_descent(x: float, std: float, steps: int = 2000, rate: float = 0.1) -> float:
    """Descends along the expected move."""
    for _ in range(steps):
        x -= rate * mean_move(x, std)
    return x + 0.0


# --- gradients of a network ----------------------------------------------------------


def gradients_at(setup, params, stats, count: int) -> np.ndarray:
    """Computes every example's gradient [n, d] at the same weights."""
    task = setup.task
    gradient = local_gradient(task.models[False], task.loss, none(), train=False)
    inputs, labels = task.dataset.fetch(np.arange(count))
    targets = task.dataset.target_spec.encode(jnp.asarray(labels))

    def of_one(example) -> jax.Array:
        image, target = example
        found = gradient(
            jax.random.key(0),
            Public(params),
            stats,
            Private(),
            image[None],
            target[None],
        )
        return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(found.public)])

    run = jax.jit(lambda pair: jax.lax.map(of_one, pair, batch_size=64))
    return np.asarray(run((jnp.asarray(inputs), targets)))


def asymmetry(grads: np.ndarray, signs: int = SIGNS) -> tuple[float, float]:
    """Measures how far gradients are from being symmetric about their mean.

    Of u = g - mean, E|u + u'| / E|u - u'| - 1 over pairs (the energy distance of u to
    -u): 0 for a symmetric distribution and above 0 for others, but for what the mean of
    few examples takes off.

    Returns:
      That, and the 95 % quantile of it for the same u under random signs, about their
      own mean: symmetric samples of as many examples.
    """
    around = grads.astype(np.float64) - grads.mean(axis=0, dtype=np.float64)
    inner, generator = around @ around.T, np.random.default_rng(0)
    drawn = generator.choice([-1, 1], (signs, len(around)))
    null = [_ratio(s[:, None] * inner * s[None]) for s in drawn]
    return _ratio(inner), float(np.quantile(null, 0.95))


def _ratio(inner: np.ndarray) -> float:
    """Computes the measure from inner products [n, n], about their mean."""
    inner = inner - inner.mean(axis=0) - inner.mean(axis=1)[:, None] + inner.mean()
    squares = np.diag(inner)[:, None] + np.diag(inner)[None]
    pairs = np.triu_indices(len(inner), 1)
    plus, minus = (
        np.sqrt(np.maximum(squares + sign * 2 * inner, 0))[pairs] for sign in (1, -1)
    )
    return float(plus.sum() / minus.sum() - 1)


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


@functools.partial(jax.jit, static_argnames="draws")
def clipped_means(grads, bound, std, draws: int):
    """Computes the mean of clipped gradients [draws, d], by kljax's own parts."""
    defence = chain(pre_clip_noise(std), example_clipping(bound))
    count = len(grads)

    def of_draw(rng):
        def one(pair):
            index, grad = pair
            return defence.per_example(jax.random.fold_in(rng, index), grad)

        changed = jax.lax.map(one, (jnp.arange(count), grads), batch_size=64)
        return jnp.mean(changed, axis=0)

    return jax.lax.map(of_draw, jax.random.split(jax.random.key(1), draws))


def bias_lines(name: str, grads: np.ndarray, draws: int) -> list[list[str]]:
    """Lays out the direction of the clipped mean, by bound and noise before it."""
    lengths, true = np.linalg.norm(grads, axis=1), grads.mean(axis=0)
    unit = np.median(lengths) / grads.shape[1] ** 0.5
    lines = []
    for quantile in QUANTILES:
        bound = float(np.quantile(lengths, quantile))
        for length in LENGTHS:
            count = draws if length else 1
            means = clipped_means(grads, bound, length * unit, draws=count)
            means = np.asarray(means, np.float64)
            each = np.mean([cosine(mean, true) for mean in means])
            whole = means.mean(axis=0)
            along = whole @ true / (true @ true)
            lines.append(
                [
                    name,
                    f"{bound:.3g} ({quantile:.0%})",
                    f"{length:g}",
                    f"{each:.3f}",
                    f"{cosine(whole, true):.3f}",
                    f"{along:.3f}",
                ]
            )
    return lines


def written(number: float) -> str:
    return f"{round(number, 3) + 0.0:.3f}"  # no minus before a zero


def table(head: list[str], lines: list[list[str]]) -> None:
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for line in lines:
        print(f"| {' | '.join(line)} |")
    print()


def main():
    """Prints the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--examples", type=int, default=256)
    parser.add_argument("--draws", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    places = (-1.0, -0.5, 0.0, 0.5, 1.0, 2.0)
    table(
        [
            "noise before",
            *(f"move at {x:g}" for x in places),
            "from 3 to",
            "from .5 to",
        ],
        [
            ["(no clipping)", *(f"{x / 2:.3f}" for x in places), "0.000", "0.000"],
            *(
                [
                    f"{std:g}",
                    *(written(mean_move(x, std)) for x in places),
                    written(end_of_descent(3.0, std)),
                    written(end_of_descent(0.5, std)),
                ]
                for std in STDS
            ),
        ],
    )
    config = TrainConfig(
        model="lenet",
        image_size=16,
        arms=("none",),
        clients=1,
        batch=32,
        rounds=options.rounds,
        optimiser="adam",
        learning_rate=0.002,
        weight_decay=0.0,
        evaluate_every=options.rounds,
    )
    result = train(config)
    setup = result.setup
    fresh = start(setup, arm_rounds(setup, "none").rounds)[0]
    states = {"fresh": fresh, f"{options.rounds} rounds": result.arms["none"].server}
    print(f"test accuracy: {result.rows[-1]['test_accuracy']:.3f}\n")
    lines, about = [], []
    for name, server in states.items():
        grads = gradients_at(setup, server.public.model, server.stats, options.examples)
        lengths = np.linalg.norm(grads, axis=1)
        found, null = asymmetry(grads)
        mean = np.linalg.norm(grads.mean(axis=0))
        low, middle, high = np.quantile(lengths, QUANTILES)
        about.append(
            [
                name,
                f"{low:.3g}, {middle:.3g}, {high:.3g}",
                f"{mean:.3g}",
                f"{found:.4f}",
                f"{null:.4f}",
            ]
        )
        lines += bias_lines(name, grads, options.draws)
    table(
        ["weights", "lengths at 10, 50, 90 %", "length of mean", "asymmetry", "chance"],
        about,
    )
    table(
        ["weights", "bound (quantile)", "noise", "cosine", "cosine of mean", "along"],
        lines,
    )


if __name__ == "__main__":
    main()
