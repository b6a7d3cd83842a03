"""How often does CENSOR's fallback send the true gradient?

    python experiments/censor_fallback.py [--victims 64] [--rates 1e-4 1e-2 1]

LeNet on digits at 16x16, drawn afresh for each victim, one example each, 20 trials. A
victim counts if what `censor-fallback` sends is its gradient, entry by entry.
"""

import argparse

import jax
import numpy as np

from kljax import LeakConfig
from kljax.studies.builder.drawn_client import draw_rng, make_sources
from kljax.studies.builder.study import build_study


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--victims", type=int, default=64)
    parser.add_argument("--rates", type=float, nargs="+", default=(1e-4, 1e-2, 1.0))
    options = parser.parse_args()
    print("| rate | true gradient sent |\n|---|---|", flush=True)
    for rate in options.rates:
        count = count_true(options.victims, rate)
        print(f"| {rate:g} | {count}/{options.victims} |", flush=True)


def count_true(victims: int, rate: float) -> int:
    """Counts the victims whose true gradient is sent."""
    arm = f"censor-fallback=rate={rate!r}"
    config = LeakConfig(arms=(arm,), image_size=16, victims=victims)
    study = build_study(config)
    (job,) = study.attacks
    draw_network, draw_held = job.client.draws

    def sends_true(inputs):
        source, images, labels = inputs
        network = draw_network(source)
        held = draw_held(source, network)
        update = job.client.upload(
            draw_rng(source, "step"), job.arm.defence, network, held, images, labels
        )
        same = jax.tree.map(
            lambda a, b: (a == b).all(), update.sent, update.before_release
        )
        return jax.tree.reduce(lambda a, b: a & b, same)

    sources = make_sources(config, study.victims)
    with jax.default_matmul_precision(config.precision):
        found = jax.jit(lambda *given: jax.lax.map(sends_true, given))(
            sources, study.victims.inputs, study.victims.labels
        )
    return int(np.sum(found))


if __name__ == "__main__":
    main()
