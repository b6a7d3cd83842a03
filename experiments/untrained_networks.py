"""Are untrained networks better priors, and can the best be told before it is trained?

What: LeNet (sigmoids), weights U(-.5, .5), images of 16x16, labels given. First part:
architectures drawn as GI-NAS draws them, the same for every victim, each trained to the
end of a fixed budget; Spearman's rank correlation, over architectures, of the distance
before any training with the last distance, and with the PSNR of what was found; its
mean over victims with an interval that draws victims. Second part: `deep-image-prior`,
`gi-nas`, `grnn`, `inverting-gradients` at equal evaluations, under several arms, beside
floors.
Device: any. Trials: see the options.
Results: experiments/untrained_networks.md.

    python experiments/untrained_networks.py --only ranking
    python experiments/untrained_networks.py --only attacks
    python experiments/untrained_networks.py --only ranking --figure FILE.png

What is there is kept in a folder: a second start goes on where the first was stopped.
"""

import argparse
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats
from tabulate import tabulate

from kljax import LeakConfig, data, defences, leak, score_rows
from kljax.attacks import AssumedDefence, Setting, Task, Unknowns, descend, replay
from kljax.attacks.architectures import describe
from kljax.attacks.labels import LABELS
from kljax.attacks.objectives import cosine
from kljax.attacks.optimisers import sign_adam
from kljax.attacks.secrets import secret_of
from kljax.attacks.untrained import space_of, untrained_images
from kljax.core.targets import classes_of
from kljax.core.types import Private, Public
from kljax.federated.clients import one_step
from kljax.models import LeNet, from_nnx, losses, uniform
from kljax.parallel.compilation import use_cache
from kljax.threat import Strategy, least_knowledge, observe

SIDE, CLASSES = 16, 10
CHANNELS, SCALES = 16, 3
COLOURS = {"digits": 1, "photos": 3}
RATE = 1e-3  # of Adam on signs, GI-NAS's
SIDE_BY_SIDE = 10  # architectures that are trained together
RESAMPLES = 2000
# Each has its own values but for these.
ATTACKS = {
    "deep-image-prior": (f"channels={CHANNELS}",),
    "gi-nas": (f"channels={CHANNELS}", "candidates=300"),
    "grnn": (),
    "inverting-gradients": (),
}
CASES = {
    "digits-1": {"data": "digits", "channels": 1, "examples": 1},
    "photos-1": {"data": "photos", "channels": 3, "examples": 1},
    "digits-4": {"data": "digits", "channels": 1, "examples": 4},
}
# What is done to an upload is the chain of all, with the others at numbers that change
# nothing, so that these arms are one program.
NOTHING = {
    "norm-clipping": "1e9",
    "magnitude-pruning": "0",
    "soteria": "0",
    "gaussian-noise": "0",
}
RELEASES = {
    "none": {},
    "gaussian-noise=0.1": {"gaussian-noise": "0.1"},
    "norm-clipping=1": {"norm-clipping": "1"},
    "magnitude-pruning=0.9": {"magnitude-pruning": "0.9"},
    "soteria=0.8": {"soteria": "0.8"},
}
LOCKS = ("bn-control", "keylock/fixed_random", "keylock/regress_gates")
ARMS = {
    name: "+".join(f"{k}={v}" for k, v in (NOTHING | changed).items())
    for name, changed in RELEASES.items()
} | {name: name for name in LOCKS}
SITES = ("norm1",)  # of the lock, and of its control
ELSEWHERE = {"digits-4": ("none", "bn-control", "keylock/regress_gates")}


def main():
    """Computes what is missing, and prints what is there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("ranking", "attacks"))
    parser.add_argument("--data", nargs="+", choices=COLOURS, default=list(COLOURS))
    parser.add_argument("--architectures", type=int, default=60)
    parser.add_argument("--budget", type=int, default=150, help="steps, ranking")
    parser.add_argument("--subjects", type=int, default=5, help="victims, ranking")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS))
    parser.add_argument("--steps", type=int, default=300, help="of the attacks")
    parser.add_argument("--victims", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("runs/untrained"))
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--print-only", action="store_true")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    use_cache()
    if options.only != "attacks":
        rankings(options)
    if options.only != "ranking":
        attacks(options)


# --- does the distance before training tell the end? ----------------------------------


def rankings(options):
    """Trains every architecture on every victim; prints correlations."""
    lines, drawn = [], {}
    for name in options.data:
        found = []
        path = options.folder / f"ranking-{name}.jsonl"
        done = [json.loads(line) for line in path.open()] if path.exists() else []
        if len(done) < options.subjects and not options.print_only:
            run = Ranking(name, options)
            for victim in range(len(done), options.subjects):
                done.append(run.of(victim))
                with path.open("a") as opened:
                    opened.write(json.dumps(done[-1]) + "\n")
                print(f"{name}, victim {victim}", flush=True)
        found = [one for one in done if len(one["first"]) == options.architectures]
        drawn[name] = found
        for label, column, sign in (
            ("last distance", "last", 1),
            ("PSNR", "psnr", -1),
            ("PSNR before training", "psnr_first", -1),
        ):
            lines.append([name, label, *correlation(found, column, sign)])
        lines.append(
            [
                name,
                "last distance with PSNR",
                *correlation(
                    [one | {"first": one["last"]} for one in found], "psnr", -1
                ),
            ]
        )
        lines += regret(name, found)
        lines.append([name, "PSNR (of the other victims' mean PSNR)", *others(found)])
    head = ["victims", "of the first distance with", "mean rho [95 %]", "each"]
    print(tabulate([line for line in lines if len(line) == 4], head, "github"))
    print()
    head = [
        "victims",
        "PSNR of the first by distance (above the mean)",
        "of the first for the other victims",
        "mean",
        "of the best",
    ]
    print(
        tabulate(
            [line[:1] + line[2:] for line in lines if len(line) == 6],
            head,
            "github",
            disable_numparse=True,
        )
    )
    if options.figure:
        draw(drawn, options.figure)


def draw(drawn, path):
    """Draws a point per architecture and victim."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(drawn), figsize=(5 * len(drawn), 4))
    for axis, (name, found) in zip(np.atleast_1d(axes), drawn.items(), strict=True):
        for victim, one in enumerate(found):
            axis.scatter(one["first"], one["psnr"], s=9, label=f"victim {victim}")
        axis.set(xscale="log", xlabel="cosine distance before training", title=name)
        axis.set_ylabel("PSNR of what was found, dB")
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def correlation(found, column, sign):
    """Gives the mean over victims of Spearman's rho, its interval, and each."""
    return summarised(
        [
            stats.spearmanr(one["first"], sign * np.array(one[column])).statistic
            for one in found
        ]
    )


def others(found):
    """Ranks architectures by what they found of other victims, with no upload."""
    values = np.array([one["psnr"] for one in found])
    return summarised(
        [
            stats.spearmanr(np.delete(values, n, 0).mean(axis=0), own).statistic
            for n, own in enumerate(values)
            if len(values) > 1
        ]
    )


def summarised(each):
    """Gives the mean with an interval that draws victims, and each."""
    if not len(each):
        return "-", "-"
    each = np.array(each)
    draws = np.random.default_rng(0).integers(0, len(each), (RESAMPLES, len(each)))
    low, high = np.quantile(each[draws].mean(axis=1), (0.025, 0.975))
    own = " ".join(f"{rho:.2f}" for rho in each)
    return f"{each.mean():.2f} [{low:.2f}, {high:.2f}]", own


def regret(name, found):
    """Says what choosing by the first distance brings, in decibels."""
    if not found:
        return []
    chosen = [one["psnr"][int(np.argmin(one["first"]))] for one in found]
    means = [np.mean(one["psnr"]) for one in found]
    best = [np.max(one["psnr"]) for one in found]
    gains = np.subtract(chosen, means)
    draws = np.random.default_rng(0).integers(0, len(gains), (RESAMPLES, len(gains)))
    low, high = np.quantile(gains[draws].mean(axis=1), (0.025, 0.975))
    text = f"{np.mean(chosen):.1f} ({np.mean(gains):+.1f} [{low:.1f}, {high:.1f}])"
    values = np.array([one["psnr"] for one in found])
    others = [
        own[np.argmax(np.delete(values, n, 0).mean(axis=0))]
        for n, own in enumerate(values)
        if len(values) > 1
    ]
    numbers = (np.mean(others) if others else np.nan, np.mean(means), np.mean(best))
    return [[name, "regret", text, *(f"{number:.1f}" for number in numbers)]]


class Ranking:
    """One compiled program, for all victims of a dataset."""

    def __init__(self, name, options):
        shape = (SIDE, SIDE, COLOURS[name])
        dataset = data.load(name, shape=shape)
        chosen = data.select(dataset, options.subjects, seed=0)
        self.images, self.labels = dataset.fetch(chosen)
        model = from_nnx(
            lambda rngs: LeNet(
                CLASSES, image_shape=shape, initialiser=uniform(0.5), rngs=rngs
            )
        )
        none = defences.none()
        threat = least_knowledge(Strategy(secret="unit", labels="given"))
        task = Task(
            model, losses.cross_entropy, dataset.input_spec, classes_of(CLASSES), "fc"
        )
        setting = Setting(task, threat, AssumedDefence(none.gates, none.simulate))
        client = one_step(model, losses.cross_entropy, none, train=False)
        secret = secret_of(setting)
        space = space_of(setting, CHANNELS, SCALES, kernel=3)
        inputs = untrained_images(setting, space)

        def search(steps):
            return descend(
                Unknowns(inputs, LABELS["given"](setting), secret.unknown),
                replay(setting, secret.gates),
                cosine(),
                sign_adam(RATE),
                steps=steps,
                points=steps,
            )

        full = search(options.budget)

        def run(rng, image, label):
            rng_model, rng_client = jax.random.split(rng)
            params, statistics = model.init(rng_model)
            sent = client(
                rng_client,
                Public(params),
                statistics,
                Private(),
                image[None],
                jax.nn.one_hot(label, CLASSES)[None],
            )
            view = observe(threat, sent)

            def of_architecture(index):
                # The same for every victim, with the same weights.
                own = jax.random.fold_in(jax.random.key(1), index)
                found = full(own, view)
                drawn = inputs.start(
                    jax.random.fold_in(jax.random.fold_in(own, 0), 0), view
                )
                first = inputs.decode(*drawn)
                return {
                    "first": found.info["losses"][0],
                    "last": found.loss,
                    "psnr": psnr(found.inputs[0], image),
                    "psnr_first": psnr(first[0], image),
                    "architecture": found.info["architecture"],
                }

            indices = jnp.arange(options.architectures)
            return jax.lax.map(of_architecture, indices, batch_size=SIDE_BY_SIDE)

        self.run = jax.jit(run)

    def of(self, victim):
        """Gives lists over architectures for one victim."""
        start = time.process_time()
        found = jax.device_get(
            self.run(
                jax.random.fold_in(jax.random.key(0), victim),
                self.images[victim],
                self.labels[victim],
            )
        )
        architectures = found.pop("architecture")
        count = len(found["first"])
        names = [
            describe(jax.tree.map(lambda x, n=n: x[n], architectures))
            for n in range(count)
        ]
        lists = {name: [float(x) for x in values] for name, values in found.items()}
        return lists | {
            "architectures": names,
            "processor_s": time.process_time() - start,
        }


def psnr(guess, truth):
    """Gives decibels, of images clipped to [0, 1]."""
    return -10 * jnp.log10(jnp.mean((jnp.clip(guess, 0, 1) - truth) ** 2) + 1e-12)


# --- which attack finds more ----------------------------------------------------------


def attacks(options):
    """Runs every attack on every case and arm; prints means."""
    for case in options.cases:
        for attack in options.attacks:
            paths = {
                arm: path_of(case, attack, arm, options)
                for arm in arms_of(case, options)
            }
            # Arms of one study compile side by side.
            missing = [arm for arm, path in paths.items() if not path.exists()]
            if missing and not options.print_only:
                for arm, cell in one_attack(case, attack, missing, options).items():
                    paths[arm].write_text(json.dumps(cell))
                print(case, attack, *missing, flush=True)
    for case in options.cases:
        table = []
        for arm in arms_of(case, options):
            paths = {a: path_of(case, a, arm, options) for a in options.attacks}
            cells = {
                a: json.loads(p.read_text()) for a, p in paths.items() if p.exists()
            }
            if cells:
                first = next(iter(cells.values()))
                floor = f"{np.mean(first['floor']):.1f}"
                own = [shown(cells.get(attack)) for attack in options.attacks]
                table.append([arm, floor, *own])
        print(f"\n{case}: PSNR in dB, mean [least, most]\n")
        head = ["arm", "best floor", *options.attacks]
        print(tabulate(table, head, "github", disable_numparse=True), flush=True)


def arms_of(case, options):
    """Lists the arms of a case."""
    return [arm for arm in options.arms if arm in ELSEWHERE.get(case, options.arms)]


def path_of(case, attack, arm, options):
    """Says where the results of one attack are kept."""
    return options.folder / f"{case}-{attack}-{arm.replace('/', '-')}.json"


def shown(cell):
    """Writes the PSNR of all victims."""
    if cell is None:
        return "-"
    values = cell["psnr"]
    return f"{np.mean(values):.1f} [{min(values):.1f}, {max(values):.1f}]"


def one_attack(case, attack, arms, options):
    """Attacks all victims of one case under several arms: arm -> what is kept.

    Scores are of single images, those of a victim side by side.
    """
    result = leak(
        LeakConfig(
            **CASES[case],
            model="lenet",
            image_size=SIDE,
            arms=tuple(ARMS[arm] for arm in arms),
            sites=SITES,
            attack=attack,
            attack_options=ATTACKS[attack],
            labels="given",
            steps=options.steps,
            victims=options.victims,
            seed=0,
        )
    )
    rows = score_rows(result)
    floors = {}
    for row in rows:
        if row["arm"].startswith("floor/"):
            floors.setdefault(row["arm"], []).append(row["psnr"])
    best = max(floors, key=lambda name: np.mean(floors[name]))
    seconds = {one.arm.name: one.timing._asdict() for one in result.arms}
    cells = {}
    for arm in arms:
        own = [row for row in rows if row["arm"] == ARMS[arm]]
        cells[arm] = {
            "psnr": [row["psnr"] for row in own],
            "loss": [row["matching_loss"] for row in own],
            "floor": floors[best],
            "floor_name": best,
            "seconds": {n: float(s) for n, s in seconds[ARMS[arm]].items()},
        }
    return cells


if __name__ == "__main__":
    main()
