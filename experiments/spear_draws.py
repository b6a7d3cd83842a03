"""How many draws SPEAR needs, from the ReLUs of a batch, without running it.

    python experiments/spear_draws.py [--examples 4 6 8 10] [--data digits]

SPEAR draws B - 1 units, and finds an example if it is shut at all of them and the
others' derivatives there have rank B - 1. From the true ReLUs of batches on fresh
networks `dense-relu`: the chance of that for each example, by trying sets of units at
which it is shut, and the expected number of draws until all are found (of independent
draws, so a sum over chances). Beside it what independent ReLUs would take that are shut
for half of the examples: 2^(B - 1) draws for one, and (1 + 1/2 + ... + 1/B) times as
many for all. Columns: means over batches; in the last the largest of them. Results:
experiments/exact_recovery.md.
"""

import argparse

import jax
import numpy as np
from tabulate import tabulate

from kljax import data
from kljax.models import DenseReLU, from_nnx

HEAD = ("examples", "live units", "shut of these", "full rank", "least chance")
HEAD += ("draws, independent", "draws, expected", "most")
TRIES = 2000


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--examples", type=int, nargs="+", default=[4, 6, 8, 10])
    parser.add_argument("--data", default="digits")
    parser.add_argument("--shape", type=int, nargs=3, default=[8, 8, 1])
    parser.add_argument("--batches", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rows = [measure(examples, options) for examples in options.examples]
    print(tabulate(rows, HEAD, tablefmt="github", disable_numparse=True))


def measure(examples, options):
    """Measures batches of so many examples: a row of the table."""
    dataset = data.load(options.data, shape=tuple(options.shape))
    draw = np.random.default_rng(options.seed)
    model = from_nnx(
        lambda rngs: DenseReLU(
            dataset.num_classes, image_shape=tuple(options.shape), rngs=rngs
        )
    )
    init = jax.jit(model.init)
    found = []
    for number in range(options.batches):
        chosen = draw.choice(len(dataset), examples, replace=False)
        images = np.asarray(dataset.inputs)[chosen].reshape(examples, -1)
        params, _ = init(jax.random.key(1000 * options.seed + number))
        kernel, bias = (params[f"layers/0/{name}"] for name in ("kernel", "bias"))
        lit = images @ np.asarray(kernel) + np.asarray(bias) > 0
        lit = lit[:, lit.any(axis=0)]
        full = [share_of_full_rank(draw, lit, one) for one in range(examples)]
        shut = 1 - lit.mean(axis=1)
        chances = shut ** (examples - 1) * full
        found.append(
            (
                lit.shape[1],
                shut.mean(),
                np.mean(full),
                chances.min(),
                expected_draws(chances),
            )
        )
    live, shut, full, least, expected = np.mean(found, axis=0)
    independent = expected_draws(np.full(examples, 0.5 ** (examples - 1)))
    most = max(expected for *_, expected in found)
    return (
        examples,
        f"{live:.0f}",
        f"{shut:.2f}",
        f"{full:.2f}",
        f"{least:.1e}",
        f"{independent:.0f}",
        f"{expected:.0f}",
        f"{most:.0f}",
    )


def share_of_full_rank(draw, lit, one):
    """Estimates how often units at which an example is shut tell the others apart.

    Derivatives where a ReLU is open are drawn at random: of those of a network almost
    none have a lower rank than such ones. 0 for an example that is shut nowhere.
    """
    shut = np.flatnonzero(~lit[one])
    if not len(shut):
        return 0.0
    units = shut[draw.integers(len(shut), size=(TRIES, len(lit) - 1))]
    others = np.delete(lit, one, axis=0)[:, units].transpose(1, 0, 2)
    derivatives = others * draw.standard_normal(others.shape)
    return np.mean(np.linalg.matrix_rank(derivatives) == len(lit) - 1)


def expected_draws(chances):
    """Computes how many draws it takes until everything was drawn once.

    Of a Poisson process of one draw per unit of time, which takes as many.
    """
    if np.min(chances) == 0:
        return np.inf
    times = np.linspace(0, 60 / np.min(chances), 200_001)
    missing = 1 - np.prod(1 - np.exp(-np.outer(times, chances)), axis=1)
    return np.trapezoid(missing, times)


if __name__ == "__main__":
    main()
