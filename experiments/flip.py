"""FLIP beside rules of aggregation: three triggers, single-shot and continuous.

    python experiments/flip.py --json FILE [--seeds 3] [--only PART ...]
    python experiments/flip.py --json FILE --table

Ten clients train a dense network on digits of 8 x 8 pixels for 15 rounds, dealt out by
a Dirichlet distribution of .5, as in experiments/backdoor.py, but with at most 16 steps
in a round, so that all seeds are one compilation. Clients 0 to 3 attack, as
four of the ten in a round do in the paper:

  honest       nobody attacks: the floor of attack success
  single-shot  one each replaces the model, boosted by 10, in rounds 10, 11, 12, 13
  continuous   all poison half of each batch in rounds 10 to 14, and boost nothing

Triggers: a patch of 2 x 2 white pixels, noise blended in by .2, and four bars of which
each attacker puts on one. Defences, in the name of the table:

  flip         clients harden under the mean in rounds 10 to 14, from a network that
               was trained without, as in the paper; its search is scaled from 400
               steps for a class and 200 for a pair to 200 and 80, on 8 examples of
               each; of its triggers those are stamped that cover an eighth of an image
               at most, as in the code
  flip, 1/4    the same with triggers that cover up to a quarter: images are small
  flip, 60 steps  as flip, with a search of 60 and 30 steps on 4 examples
  ..., .4      the same networks, which reject below a confidence of .4
  others       `--aggregator` of kljax train, nobody hardens

Who knows FLIP attacks it continuously, by

  patch of 4 x 4       a trigger that covers more than a mask may
  blended by 0.1       one that changes no pixel by more than a tenth
  hardens, too         training on poisoned batches that are hardened, too
  hardens first        poisoning what is hardened, as honest clients harden
  weak in training     training on a patch of half the brightness, so that the network
                       is surer of the whole one than it would have to be
  weak, hardens first  both
  boosts by 4          multiplying its change by 4

Columns: accuracy on test images, and attack success: the share of test images of other
classes that, with the whole trigger, are taken for class 0. Median [lowest, highest]
over seeds, which are 3: an interval of 75 % for the median (1 - 2 / 2^3). Every
training is appended to FILE as it ends, and is not made again.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import time
from pathlib import Path

from studies.json_lines import read_lines
from tabulate import tabulate
from training.poisoned import FIXED, HONEST, POISON

from kljax import TrainConfig, train
from kljax.data.triggers import make_trigger
from kljax.parallel.compilation import use_cache
from kljax.studies.measuring import measure, measuring_of

FLIPS = {
    "flip": "flip=200,80,8@10-14",
    "flip, 1/4": "flip=200,80,8,0.5,0.25@10-14",
    "flip, 60 steps": "flip=60,30,4@10-14",
}
REJECT = 0.4
TRIGGERS = {"patch": "patch=2", "blended": "blended=0.2", "distributed": "distributed"}
SHOTS = tuple(f"{n}:model-replacement=10@{10 + n}" for n in range(4))
ATTACKS = {"single-shot": SHOTS, "continuous": ("0-3:backdoor@10-14",)}
RULES = ("mean", "norm-bounding=1,0.001", "median", "krum=3", "fltrust")
RULES += ("trimmed-mean=3", "multi-krum=3")
ADAPTIVE = {
    "patch of 4 x 4": ("patch=4", "backdoor"),
    "blended by 0.1": ("blended=0.1", "backdoor"),
    "hardens, too": ("patch=2", "hardened-backdoor"),
    "hardens first": ("patch=2", "hardened-backdoor=1,1"),
    "weak in training": ("patch=2", "backdoor=0.5"),
    "weak, hardens first": ("patch=2", "hardened-backdoor=0.5,1"),
    "boosts by 4": ("patch=2", "model-replacement=4"),
}
FLOORS = TRIGGERS | {name: ADAPTIVE[name][0] for name in [*ADAPTIVE][:2]}
ROOT = {"fltrust": {"public_examples": 100}}
HEAD = ("defence", "attack", "trigger", "accuracy", "attack success")


@dataclasses.dataclass(frozen=True)
class Run:
    """One training; several rows of the table may come of it."""

    part: str  # flip, rules, boosting or adaptive
    defence: str
    attack: str
    trigger: str  # of the table
    text: str  # as kljax train is given it
    roles: tuple[str, ...]

    def config(self, seed: int) -> TrainConfig:
        """Makes the configuration of the training."""
        return TrainConfig(
            aggregator="mean" if self.defence in FLIPS else self.defence,
            hardening=FLIPS.get(self.defence, "none"),
            roles=self.roles,
            trigger=self.text,
            seed=seed,
            **FIXED | ROOT.get(self.defence, {}),
        )


def all_runs() -> list[Run]:
    """Lists the trainings of a seed: those that answer most come first."""
    runs = []

    def add(part: str, defence: str, triggers: dict[str, str]) -> None:
        runs.append(Run(part, defence, "honest", "all", "patch=2", HONEST))
        for attack, roles in ATTACKS.items():
            for name, text in triggers.items():
                runs.append(Run(part, defence, attack, name, text, roles))

    for defence in FLIPS:
        add("flip", defence, TRIGGERS)
    add("rules", "mean", TRIGGERS)
    add("boosting", "fedboosting", {"patch": TRIGGERS["patch"]})
    for name, (text, role) in ADAPTIVE.items():
        roles = (POISON.format(role),)
        runs.append(Run("adaptive", "flip", "adaptive", name, text, roles))
        # Where nobody hardens, an attacker does not, either.
        if not role.startswith("hardened"):
            runs.append(Run("adaptive", "mean", "adaptive", name, text, roles))
    big = "patch of 4 x 4", "patch=4", (POISON.format("backdoor"),)
    runs.append(Run("adaptive", "flip, 1/4", "adaptive", *big))
    for rule in RULES[1:]:
        add("rules", rule, TRIGGERS)
    return sorted(runs, key=urgency)


def urgency(run: Run) -> tuple:
    """Orders trainings, for who stops early."""
    kinds = ("continuous", "single-shot", "adaptive")
    first = run.defence in (*FLIPS, "mean", "fedboosting")
    triggers = ("patch", "all", "patch of 4 x 4", "distributed", "blended", *ADAPTIVE)
    place = kinds.index(run.attack) if run.attack in kinds else -1
    return not first, triggers.index(run.trigger), place


def play(run: Run, seed: int) -> list[dict]:
    """Trains once; gives what is measured with and without rejection."""
    began = time.process_time()
    result = train(run.config(seed))
    setup, arm = result.setup, result.arms["none"]
    seen = [(run.trigger, setup)]
    if run.attack == "honest":
        seen = [(name, with_trigger(setup, text)) for name, text in FLOORS.items()]
    spent, found = time.process_time() - began, []
    for threshold in (0.0, REJECT) if run.defence in FLIPS else (0.0,):
        for name, one in seen:
            config = dataclasses.replace(one.config, reject_below=threshold)
            on = measuring_of(one._replace(config=config), "none", rounds_of(one))
            given = measure(on, arm.server, arm.clients)
            rejects = f", {threshold:g}" if threshold else ""
            defence = run.defence + rejects
            found.append(
                {
                    "defence": defence,
                    "attack": run.attack,
                    "trigger": name,
                    "seed": seed,
                    "accuracy": given.accuracy[0],
                    "success": given.attack_success[0],
                    "cpu_s": spent,
                }
            )
            spent = 0.0
    return found


def rounds_of(setup):
    """Makes the rounds of the only arm of a run."""
    from kljax.studies.builder.run_setup import arm_rounds

    return arm_rounds(setup, "none")


def with_trigger(setup, text):
    """Makes the same run, measured with another trigger."""
    trigger = make_trigger(text, setup.task.dataset.shape)
    return setup._replace(attack=setup.attack._replace(trigger=trigger))


def key_of(run: Run, seed: int) -> str:
    """Writes what a training is of."""
    return f"{run.defence}|{run.attack}|{run.trigger}|{seed}"


def read(path: Path) -> dict[str, list[dict]]:
    """Reads the trainings that were made, by what they are of."""
    return {line["run"]: line["found"] for line in read_lines(path)}


def interval(values: list[float]) -> str:
    """Writes the median and the range of some shares, in %."""
    low, high = min(values), max(values)
    return f"{100 * statistics.median(values):.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def tabled(made: dict[str, list[dict]]) -> str:
    """Writes the table of all trainings; those of fewer seeds say so."""
    rows: dict[tuple, list[dict]] = {}
    for found in made.values():
        for one in found:
            place = one["defence"], one["attack"], one["trigger"]
            rows.setdefault(place, []).append(one)
    most = max(map(len, rows.values()))
    lines = []
    for place, several in rows.items():
        said = [interval([one[n] for one in several]) for n in ("accuracy", "success")]
        if len(several) < most:
            said[0] += f" ({len(several)} seeds)"
        lines.append([*place, *said])
    order = {name: n for n, name in enumerate((*ATTACKS, "honest"))}
    lines.sort(key=lambda line: (line[1] == "adaptive", line[0], order.get(line[1], 9)))
    return tabulate(lines, HEAD, tablefmt="github", disable_numparse=True)


def main():
    """Makes what was not made, and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parts = ("flip", "rules", "adaptive", "boosting")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--defences", nargs="+", help="of them alone")
    parser.add_argument("--table", action="store_true", help="of what was made alone")
    given = parser.parse_args()
    use_cache()
    made = read(given.json)
    for run in all_runs() if not given.table else ():
        for seed in range(1, given.seeds + 1):
            key = key_of(run, seed)
            named = not given.defences or run.defence in given.defences
            if run.part not in given.only or not named or key in made:
                continue
            made[key] = play(run, seed)
            with given.json.open("a") as file:
                file.write(json.dumps({"run": key, "found": made[key]}) + "\n")
            last = made[key][0]
            said = f"{last['accuracy']:.3f} {last['success']:.3f}"
            print(f"{key}: {said}, {last['cpu_s']:.1f} s", file=sys.stderr, flush=True)
    print(tabled(made))
    spent = sum(one["cpu_s"] for found in made.values() for one in found)
    print(f"\n{len(made)} trainings, {spent / 60:.1f} processor minutes")


if __name__ == "__main__":
    main()
