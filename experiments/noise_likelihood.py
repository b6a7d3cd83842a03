"""Whether an attacker who knows the noise gains by its density.

    python experiments/noise_likelihood.py [--victims 8] [--steps 500] [--size 8]

Results: experiments/noise_likelihood.md. One victim is one image of digits; a network
of dense layers, drawn afresh. The attacks have the same start and the same descent, no
prior, and differ in the objective alone: ``matching`` has the squared distance,
``likelihood`` the density of the arm's noise. `tensor_noise` is a defence of this
script: its noise is as strong, beside each tensor, as that tensor is long. ``found``
counts victims whose objective is no higher at what was found than at the truth.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy import stats

from kljax import LeakConfig, leak, score_rows
from kljax.defences import Defence
from kljax.parallel import Layout

NOISES = {
    "gaussian-noise": (1e-4, 1e-3, 1e-2),
    "laplace-noise": (1e-4, 1e-3, 1e-2),
    "noise_likelihood:tensor_noise": (1e-3, 1e-2, 1e-1),
}
ATTACKS = ("matching", "likelihood")
COLUMNS = ("arm", "attack", "recovered", "found", "SSIM", "PSNR")


def tensor_noise(share: float) -> Defence:
    """Adds to each tensor g independent noise N(0, (share rms(g))^2)."""

    def size(leaf):
        return share * jnp.sqrt(jnp.mean(leaf**2) + 1e-20)

    def release(rng, state, grads, context):
        leaves, tree = jax.tree.flatten(grads)
        rngs = jax.random.split(rng, len(leaves))
        noisy = [
            leaf + size(leaf) * jax.random.normal(rng_leaf, leaf.shape)
            for rng_leaf, leaf in zip(rngs, leaves, strict=True)
        ]
        return jax.tree.unflatten(tree, noisy), state

    def log_prob(seen, simulated):
        logs = jax.tree.map(
            lambda x, mean: jnp.sum(stats.norm.logpdf(x, mean, size(mean))),
            seen,
            simulated,
        )
        return jax.tree.reduce(jnp.add, logs)

    return Defence(release=release, log_prob=log_prob)


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--victims", type=int, default=8)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--size", type=int, default=8)
    parser.add_argument("--noises", nargs="+", default=list(NOISES))
    options = parser.parse_args()
    print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|")
    for noise in options.noises:
        arms = tuple(f"{noise}={strength:g}" for strength in NOISES[noise])
        rows = {}
        for attack in ATTACKS:
            config = LeakConfig(
                model="dense",
                image_size=options.size,
                victims=options.victims,
                steps=options.steps,
                arms=arms,
                attack=attack,
                attack_options=("variation=0",),
                layout=Layout("chunked", options.victims),
            )
            rows[attack] = score_rows(leak(config))
        for arm in arms:
            for attack in ATTACKS:
                of_arm = [row for row in rows[attack] if row["arm"] == arm]
                print(line(arm, attack, of_arm), flush=True)


def line(arm: str, attack: str, rows: list) -> str:
    """Writes one arm under one attack."""
    recovered = sum(row["outcome"].startswith("recovered") for row in rows)
    # The search did its part where what it found is no worse than the truth.
    found = sum(row["matching_loss"] <= row["matching_loss_at_truth"] for row in rows)
    ssim, psnr = (np.mean([row[name] for row in rows]) for name in ("ssim", "psnr"))
    cells = (
        f"`{arm.rpartition(':')[2]}`",
        f"`{attack}`",
        f"{recovered}/{len(rows)}",
        f"{found}/{len(rows)}",
        f"{ssim:.3f}",
        f"{psnr:.1f}",
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
