"""How well peeling finds a lock's gates, beside the gates themselves.

    python experiments/peeling.py [--victims 8] [--size 32] [--model lenet]
        [--sites norm1] [--inits 0 0.5] [--examples 1]

Results: experiments/peeling.md. Several examples have random labels, which are
recovered first. Per initialisation (0: PyTorch's default; else weights of network and
lock are drawn from U(-init, init)) and victim: relative errors of live scales and
absolute errors of the shifts, median and worst over channels; the worst error in units
of the deviation that the attack itself states; whether exactly the dead channels were
found; the worst share of a layer's gradient left unexplained, and the least rank.
Scales are found without the norm's epsilon (`kljax.attacks.Peeled`), which is part of
the error.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from kljax import LeakConfig, leak
from kljax.attacks import Reconstruction
from kljax.attacks.secrets import peel
from kljax.core.types import Private

COLUMNS = (
    "init",
    "victim",
    "live",
    "scale median",
    "worst",
    "shift median",
    "worst",
    "worst in deviations",
    "dead exact",
    "unexplained",
    "least rank",
)


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--victims", type=int, default=8)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--model", default="lenet")
    parser.add_argument("--sites", nargs="+", default=())
    parser.add_argument("--examples", type=int, default=1)
    parser.add_argument("--inits", type=float, nargs="+", default=[0.0, 0.5])
    options = parser.parse_args()
    print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|")
    for init in options.inits:
        config = LeakConfig(
            model=options.model,
            attack=f"{__name__}:probe",
            # The truth is there to be compared with; `probe` peels without it.
            arms=("keylock/known",),
            victims=options.victims,
            image_size=options.size,
            init=init,
            lock_init=init,
            labels="recovered",
            sites=tuple(options.sites),
            examples=options.examples,
        )
        (arm,) = leak(config).arms
        found = arm.attacked.reconstruction.info
        for victim in range(options.victims):
            of = jax.tree.map(lambda leaf, n=victim: np.asarray(leaf)[n], found)
            cells = " | ".join(line(of["truth"], of["peeled"]))
            print(f"| {init:g} | {victim} | {cells} |", flush=True)


def line(truth, peeled):
    """Compares the gates of one victim."""
    ((site, gate),) = peeled.gates.items()
    live = truth[site].scale > 0
    scale, shift = (
        np.abs(gate.scale - truth[site].scale),
        gate.shift - truth[site].shift,
    )
    relative, shift = scale[live] / truth[site].scale[live], np.abs(shift)
    stated = peeled.deviation[site]
    far = max((scale[live] / stated.scale[live]).max(), (shift / stated.shift).max())
    return (
        f"{live.sum()} of {live.size}",
        f"{np.median(relative):.1e}",
        f"{relative.max():.1e}",
        f"{np.median(shift):.1e}",
        f"{shift.max():.1e}",
        f"{far:.1f}",
        "yes" if np.array_equal(gate.scale > 0, live) else "no",
        # A dense layer right below the classifier leaves nothing to be solved for.
        f"{max(peeled.residuals.values(), default=0):.0e}",
        # The transformer's closed form solves for no inputs.
        f"{min(peeled.ranks.values(), default=1):.3f}",
    )


def probe(setting, optimiser=None, *, steps, restarts):
    """Peels, and lets the client's gates through beside it; images are not sought."""
    del optimiser, steps, restarts
    strategy, examples = peel(setting), setting.threat.knowledge.examples

    def attack(rng, view):
        secret = Private(view.private_key, view.lock_weights)
        truth = setting.defence.gates(view.public.defence, secret)
        return Reconstruction(
            inputs=jnp.zeros((examples, *setting.task.image_shape)),
            labels=jnp.zeros(examples, jnp.int32),
            loss=jnp.zeros(()),
            finite=jnp.array(True),
            info={"truth": truth, "peeled": strategy.unknown.start(rng, view)[1]},
        )

    return attack


if __name__ == "__main__":
    main()
