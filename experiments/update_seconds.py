"""Seconds of the attacks on updates of several steps, on the same updates, in turns.

    python experiments/update_seconds.py RUN [--local-steps 4] [--steps 200]

RUN is the folder of a run of `kljax train`, of which a client's updates are attacked.
What: each attack on all victims, warm, once a round, as `kljax leak` lays it out. An
evaluation is one value and gradient of the attack's own loss; `fedleak` takes two for a
move. Columns: seconds of the clock, median and range of the rounds; seconds of the
processor, which other work on the machine changes less; evaluations per second of the
processor; and its seconds as a share of `sme`'s in the same round, median of the
rounds. Results: experiments/updates.md.
"""

import argparse
import statistics
import time

import jax
from tabulate import tabulate

from kljax import LeakConfig
from kljax.parallel import compile_victims, hold_programs, map_victims, use_all_cores
from kljax.studies.builder.study import build_study

FIRST = "sme"
ATTACKS = {
    FIRST: {},
    "ig-fedavg": {},
    "fedleak": {"labels": "given", "attack_options": ("variation=1e-6",)},
    "fedavg-inversion": {},
}
HEAD = ("attack", "victims", "evaluations each", "clock s", "range", "processor s")
HEAD += ("evaluations / processor s", f"seconds / {FIRST}'s")


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run")
    parser.add_argument("--local-steps", type=int, default=4)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--victims", type=int, default=6)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    use_all_cores()
    print(tabulate(compare(options), HEAD, tablefmt="github", disable_numparse=True))


def compare(options):
    """Measures the attacks: the rows of the table."""
    with jax.default_matmul_precision("highest"), hold_programs():
        contestants = {name: seconds(name, options) for name in ATTACKS}
        for run in contestants.values():
            run()  # what the first call of a program takes more is no attack's
        values = {name: [] for name in contestants}
        for _ in range(options.rounds):
            for name, run in contestants.items():
                values[name].append(run())
    first = [processor for _, processor in values[FIRST]]
    evaluations = options.victims * options.steps
    rows = []
    for name, rounds in values.items():
        clock, processor = zip(*rounds, strict=True)
        ratios = [own / other for own, other in zip(processor, first, strict=True)]
        rows.append(
            (
                name,
                options.victims,
                options.steps,
                f"{statistics.median(clock):.1f}",
                f"{min(clock):.1f}-{max(clock):.1f}",
                f"{statistics.median(processor):.1f}",
                f"{evaluations / statistics.median(processor):.0f}",
                f"{statistics.median(ratios):.2f}",
            )
        )
    return rows


def seconds(name, options):
    """Makes ``() -> (seconds of the clock, of the processor)``, compiled."""
    config = LeakConfig(
        from_run=options.run,
        upload="update",
        local_steps=options.local_steps,
        batch=options.batch,
        victims=options.victims,
        attack=name,
        steps=options.steps,
        **ATTACKS[name],
    )
    study = build_study(config)
    (attack,), layout = study.attacks, study.config.layout
    call = attack.attack_one, attack.client.draws, attack.inputs
    list(compile_victims([call], layout, shared=[None]))
    one, draws, inputs = call

    def run():
        began = time.process_time()
        _, timing = map_victims(one, layout, draws=draws)(*inputs)
        return timing.run_s, time.process_time() - began

    return run


if __name__ == "__main__":
    main()
