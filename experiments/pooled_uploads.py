"""Pools several uploads of one client: does a fixed private key give itself away?

    python experiments/pooled_uploads.py [--uploads 1 2 4] [--clients 4] [--steps 600]
        [--arms keylock/known keylock/regress_gates] [--seed 0]

What: clients with one lock each upload U gradients, of different examples at different
public weights (untrained ones, fresh for each upload), and
`kljax.attacks.presets.unknown_gates` attacks them together, LeNet on digits. The same
number of evaluations per upload for every U. The scores are of the first upload alone,
which every U has in common. Gate error: of all scales and shifts of live channels,
relative to their length.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from kljax import LeakConfig, metrics
from kljax.attacks.presets import gate_regression
from kljax.studies.builder.drawn_client import draw_rng, make_sources
from kljax.studies.builder.study import build_study
from kljax.threat import observe

HEAD = ("arm", "uploads", "loss median", "SSIM", "SSIM affine", "gate error median")


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--uploads", type=int, nargs="+", default=(1, 2, 4))
    parser.add_argument(
        "--arms", nargs="+", default=("keylock/known", "keylock/regress_gates")
    )
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--lock-init", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print("| " + " | ".join(HEAD) + " |\n" + "|---" * len(HEAD) + "|", flush=True)
    for arm in options.arms:
        for uploads in options.uploads:
            print(line(arm, uploads, options), flush=True)


def line(arm: str, uploads: int, options) -> str:
    """Attacks all clients; gives a row of the table."""
    most = max(options.uploads)
    config = LeakConfig(
        arms=(arm,),
        attack="gate-regression",
        victims=options.clients * most,
        lock_init=options.lock_init,
        seed=options.seed,
    )
    study = build_study(config)
    (job,) = study.attacks
    victims, defence = study.victims, job.arm.defence
    draw_network, draw_held = job.client.draws
    attack = gate_regression(
        job.setting, steps=options.steps, restarts=1, uploads=uploads
    )

    @jax.jit
    @jax.vmap
    def one_client(source, images, labels):
        """Takes the sources [U], images [U, 1, H, W, C] and labels [U, 1] of one."""
        networks = jax.vmap(draw_network)(source)
        first = jax.tree.map(lambda leaf: leaf[0], (source, networks))
        held = draw_held(*first)

        def upload(source, network, images, labels):
            rng = draw_rng(source, "step")
            return job.client.upload(rng, defence, network, held, images, labels)

        updates = jax.vmap(upload)(source, networks, images, labels)
        views = jax.vmap(lambda update: observe(job.setting.threat, update))(updates)
        if uploads == 1:
            views = jax.tree.map(lambda leaf: leaf[0], views)
        found = attack(draw_rng(first[0], "attack"), views)
        public = jax.tree.map(lambda leaf: leaf[0], updates.public)
        truth = defence.gates(public.defence, held[1])
        gates = found.info["secret"] if arm.endswith("regress_gates") else truth
        return found, truth, gates

    def grouped(leaf):
        leaf = jnp.asarray(leaf)
        return leaf.reshape(options.clients, most, *leaf.shape[1:])[:, :uploads]

    with jax.default_matmul_precision(config.precision):
        found, truth, gates = one_client(
            *jax.tree.map(grouped, (make_sources(config, victims), *victims[1:3]))
        )
    images = np.asarray(found.inputs)
    truths = np.asarray(grouped(victims.inputs))[:, 0, 0]
    scores = [metrics.score(g[0], t) for g, t in zip(images, truths, strict=True)]
    errors = []
    for client in range(options.clients):
        gaps = lengths = 0.0
        for site in truth:
            true = np.stack([part[client] for part in truth[site]])
            guess = np.stack([part[client] for part in gates[site]])
            live = true[0] != 0
            gaps += np.sum((guess - true)[:, live] ** 2)
            lengths += np.sum(true[:, live] ** 2)
        errors.append(np.sqrt(gaps / lengths))
    cells = (
        arm,
        str(uploads),
        f"{np.median(found.loss):.1e}",
        *(
            f"{np.mean([float(score[name]) for score in scores]):.3f}"
            for name in ("ssim", "ssim_affine_oracle")
        ),
        f"{np.median(errors):.2f}",
    )
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
