"""What does a defence of the upload cost its client in a step?

    XLA_FLAGS=--xla_cpu_multi_thread_eigen=false python experiments/defence_cost.py \\
        [--arms none soteria ...] [--examples 8] [--repeats 20]

LeNet on digits at 16x16, drawn afresh, one client, its gradient and its release. Each
program is compiled and called, and the least processor time of a call is printed; the
flag keeps a program on one core. Beside it stands how many times that of `none` it is.
"""

import argparse
import time

import jax

from kljax import LeakConfig
from kljax.studies.builder.drawn_client import draw_rng, make_sources
from kljax.studies.builder.study import build_study

ARMS = ("none", "gaussian-noise", "magnitude-pruning", "censor")
ARMS += ("soteria", "svdefense", "outpost", "graddefense")


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arms", nargs="+", default=ARMS)
    parser.add_argument("--examples", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    arms = dict.fromkeys(("none", *options.arms))
    print("| arm | ms | times `none` |\n|---|---|---|", flush=True)
    alone = None
    for arm in arms:
        seconds = measure(arm, options.examples, options.repeats)
        alone = alone or seconds
        print(f"| `{arm}` | {1e3 * seconds:.1f} | {seconds / alone:.1f} |", flush=True)


def measure(arm: str, examples: int, repeats: int) -> float:
    """Times one step of a client, in seconds of the processor."""
    config = LeakConfig(arms=(arm,), image_size=16, victims=1, examples=examples)
    study = build_study(config)
    (job,) = study.attacks
    draw_network, draw_held = job.client.draws
    sources = jax.tree.map(lambda x: x[0], make_sources(config, study.victims))
    network = jax.jit(draw_network)(sources)
    held = draw_held(sources, network)

    @jax.jit
    def step(network, source, images, labels):
        update = job.client.upload(
            draw_rng(source, "step"), job.arm.defence, network, held, images, labels
        )
        return update.sent

    given = network, sources, study.victims.inputs[0], study.victims.labels[0]
    with jax.default_matmul_precision(config.precision):
        jax.block_until_ready(step(*given))
        taken = []
        for _ in range(repeats):
            start = time.process_time()
            jax.block_until_ready(step(*given))
            taken.append(time.process_time() - start)
    return min(taken)


if __name__ == "__main__":
    main()
