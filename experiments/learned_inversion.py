"""Learning to Invert, trained under each defence, beside a search and three floors.

    python experiments/learned_inversion.py [--out runs/learned] [--examples 1 4]
        [--data digits fashion_mnist] [--only NAME ...] [--arms ARM ...] [--seed 0]
        [--data-dir DIR] [--tables FILE]

Networks are LeNets of one draw (``weights=shared``), images grey of 32 x 32. The
attacker has three quarters of a dataset, of which a tenth is held out of its training;
no victim is among them. A contest is one arm, and one attacker:

  learned        Learning to Invert, as its arm's clients are: what a client draws
                 (private key, lock weights, noise) is drawn anew for each upload that
                 it simulates
  shuffled       the same, and every simulated upload has the images of another one: it
                 can learn what images look like, and nothing of uploads
  weights known  the same as learned, of a lock whose weights it knows, not the key
  lock known     of a lock of which it knows both
  NAMES alone    the same as learned, and it reads those layers' gradients alone
  search         Inverting Gradients, which knows the defence (on a lock it optimises
                 the gates); on the first victims alone

Columns: SSIM and PSNR, means with intervals of 95 % by bootstrap over uploads; by how
much SSIM is above that of the mean of the image's class, image by image; recovered
(kljax.metrics.outcomes); the error of training and that on public examples which were
held out. Floors: the mean of the dataset without the victim, the mean of the victim's
class, and the public image that is nearest to the victim, which only the truth can
choose.

What a contest found is kept in OUT, and not computed again; each seed (of network,
victims and training) has an OUT of its own. `--tables` writes all that
is there as a page, and the curves of training as a picture. Results:
experiments/learned_inversion.md.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tabulate import tabulate

from kljax.core.files import write_text
from kljax.metrics.image import mse, psnr, ssim
from kljax.metrics.intervals import cluster_bootstrap
from kljax.parallel.compilation import use_cache
from kljax.studies.builder.study import build_study
from kljax.studies.config import LeakConfig
from kljax.studies.leakage import leak

ARMS = (
    "none",
    "quantise=4",
    "quantise=2",
    "quantise=1",
    "magnitude-pruning=0.99",
    "top-k=0.001",
    "gaussian-noise=0.1",
    "bn-control",
    "plaintext-gates-as-lock",
    "keylock/unit",
)
LOCK = "keylock/unit"
SEARCHED = {LOCK: "keylock/regress_gates"}
# norm1 is gated: conv1 is below, and all else above.
PARTS = {"conv1": "conv1", "above": "conv2+conv3+fc", "fc": "fc"}
KNOWN = {
    "weights known": ("lock_weights=known",),
    "lock known": ("lock_weights=known", "private_key=known"),
}
VICTIMS, SEARCHED_VICTIMS = 32, 8
STEPS, SEARCH_STEPS = 500, 1000
OPTIONS = ("width=512", "hashed=4096", "uploads=64", "learning_rate=1e-3")
FLOORS = ("data_mean", "class_mean")


class Contest(NamedTuple):
    """One arm, and who attacks it."""

    data: str
    examples: int
    attacker: str
    arm: str

    @property
    def name(self):
        """Names its file."""
        return "-".join(map(str, self)).replace("/", "_").replace(" ", "_")


def contests(data, examples):
    """Lists contests in order of importance."""
    first = [*ARMS[-3:], *ARMS[:-3]]
    rows = [("learned", arm) for arm in first]
    rows += [("shuffled", arm) for arm in (LOCK, "none")]
    rows += [(attacker, LOCK) for attacker in KNOWN]
    alone = [(f"{part} alone", arm) for part in PARTS for arm in (LOCK, "bn-control")]
    rows += alone if examples == 1 else []
    order = (LOCK, "bn-control", "none", "quantise=1", *ARMS)
    rows += [("search", arm) for arm in dict.fromkeys(order)]
    return [Contest(data, examples, *row) for row in rows]


def config_of(contest, data_dir=None, seed=0):
    """Makes the study of a contest."""
    data, examples, attacker, arm = contest
    common = {
        "data": data,
        "data_dir": data_dir,
        "split": "test" if data == "fashion_mnist" else None,
        "channels": 1,
        "weights": "shared",
        "examples": examples,
        "seed": seed,
    }
    if attacker == "search":
        return LeakConfig(
            **common,
            attack="inverting-gradients",
            arms=(SEARCHED.get(arm, arm),),
            victims=SEARCHED_VICTIMS,
            steps=SEARCH_STEPS,
        )
    options = (*OPTIONS, "shuffled=true") if attacker == "shuffled" else OPTIONS
    facts, labels = KNOWN.get(attacker, ()), None
    if attacker.endswith(" alone"):
        facts, labels = (f"visible={PARTS[attacker.split()[0]]}",), "given"
    return LeakConfig(
        **common,
        attack="learned",
        attack_options=options,
        arms=(arm,),
        victims=VICTIMS,
        steps=STEPS,
        threat=facts,
        labels=labels,
    )


def run(contest, data_dir, seed):
    """Attacks, scores, and gives what is kept."""
    started = time.process_time()
    config = config_of(contest, data_dir, seed)
    result = leak(config)
    frame = result.to_frame()
    own = frame[~frame["arm"].str.startswith("floor/")]
    kept = {
        "images": {name: own[name].tolist() for name in ("ssim", "psnr", "mse")},
        "recovered": int(own["outcome"].eq("recovered").sum()),
        "floors": {
            floor: frame[frame["arm"] == f"floor/{floor}"][["ssim", "psnr"]].to_dict(
                "list"
            )
            for floor in FLOORS
        },
    }
    if contest.attacker != "search":
        reconstruction = result.arms[0].attacked.reconstruction
        kept["curve"] = {
            name: np.asarray(values[0]).tolist()
            for name, values in reconstruction.info.items()
            if name in ("learning_steps", "training_errors", "validation_errors")
        }
        kept["errors"] = {
            name: float(reconstruction.numbers[name][0])
            for name in ("training_error", "validation_error")
        }
        kept["floors"]["nearest public"] = nearest_public(config)
    return kept | {"processor_s": time.process_time() - started}


def nearest_public(config):
    """Scores, for each victim's image, the public image that is nearest to it."""
    study = build_study(config)
    images = np.asarray(study.victims.inputs)
    images = images.reshape(-1, *images.shape[2:])
    public = np.asarray(study.public.inputs["training"])
    scores = {"ssim": [], "psnr": []}
    for image in images:
        apart = np.mean((public - image) ** 2, axis=(1, 2, 3))
        best = public[int(apart.argmin())]
        scores["ssim"].append(float(ssim(best, image)))
        scores["psnr"].append(float(psnr(best, image)))
        assert np.isclose(float(mse(best, image)), apart.min(), atol=1e-6)
    return scores


def mean(values, examples, digits=3):
    """Writes the mean of images with its interval; those of an upload go together."""
    values = np.asarray(values, np.float64)
    found = cluster_bootstrap(values, np.arange(len(values)) // examples)
    estimate, low, high = (f"{x:.{digits}f}" for x in found[:3])
    return f"{estimate} [{low}, {high}]"


def over_class_mean(kept):
    """Says by how much each image's SSIM is above that of its class's mean."""
    floor = kept["floors"]["class_mean"]["ssim"]
    return np.subtract(kept["images"]["ssim"], floor)


def read(out):
    """Reads all that is there: Contest -> what was kept."""
    found = {}
    for file in sorted(out.glob("*.json")):
        kept = json.loads(file.read_text("utf-8"))
        found[Contest(*kept["contest"])] = kept
    return found


def tables(found):
    """Writes a table for each dataset and number of examples."""
    texts = []
    for data, examples in dict.fromkeys((c.data, c.examples) for c in found):
        own = {c: found[c] for c in contests(data, examples) if c in found}
        rows = []
        for contest, kept in own.items():
            images, errors = kept["images"], kept.get("errors", {})
            rows.append(
                [
                    contest.arm.removesuffix("/unit"),
                    contest.attacker,
                    mean(images["ssim"], examples),
                    mean(images["psnr"], examples, 1),
                    mean(over_class_mean(kept), examples),
                    f"{kept['recovered']}/{len(images['ssim'])}",
                    *(
                        f"{errors[n]:.4f}" if errors else "-"
                        for n in ("training_error", "validation_error")
                    ),
                ]
            )
        floors = next((k["floors"] for c, k in own.items() if "errors" in k), {})
        for name, scores in floors.items():
            ssims, psnrs = (mean(scores[n], examples, d) for n, d in METRICS)
            rows.append(["(floor)", name.replace("_", " "), ssims, psnrs, *[""] * 4])
        head = ("arm", "attacker", "SSIM", "PSNR dB", "over class mean", "recovered")
        texts.append(f"## {data}, b = {examples}")
        texts.append(tabulate(rows, (*head, *ERRORS), "github", disable_numparse=True))
    return "\n\n".join(texts) + "\n"


METRICS = (("ssim", 3), ("psnr", 1))
ERRORS = ("training error", "held out")


def draw(found, path):
    """Draws the errors of training, and on what was held out, over the steps."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    groups = dict.fromkeys(
        (c.data, c.examples) for c, k in found.items() if "curve" in k
    )
    figure, axes = plt.subplots(1, len(groups), figsize=(6 * len(groups), 4.5))
    for axis, (data, examples) in zip(np.atleast_1d(axes), groups, strict=True):
        shown = [
            c
            for c in contests(data, examples)
            if c in found and c.attacker in ("learned", "shuffled")
        ]
        for i, contest in enumerate(shown):
            curve, colour = found[contest]["curve"], f"C{i % 10}"
            name = contest.arm.removesuffix("/unit")
            name += ", shuffled" if contest.attacker == "shuffled" else ""
            steps = curve["learning_steps"]
            axis.plot(steps, curve["validation_errors"], color=colour, label=name)
            axis.plot(steps, curve["training_errors"], color=colour, ls=":", lw=0.8)
        axis.set(title=f"{data}, b = {examples}", xlabel="steps", yscale="log")
        axis.set_ylabel("mean squared error (dotted: training)")
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def require_seed(folder, seed):
    """Ends the program if a folder has contests of another seed.

    Files of before seeds were kept are of seed 0.
    """
    for file in sorted(folder.glob("*.json")):
        theirs = json.loads(file.read_text("utf-8")).get("seed", 0)
        if theirs != seed:
            sys.exit(f"{file} is of seed {theirs}: give --seed {seed} another --out")


def main():
    """Computes what is missing, or writes what is there."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("runs/learned"))
    parser.add_argument("--data", nargs="+", default=["digits", "fashion_mnist"])
    parser.add_argument("--examples", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data-dir")
    parser.add_argument("--tables", type=Path)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.tables is not None:
        found = read(given.out)
        write_text(given.tables, tables(found))
        draw(found, given.tables.with_suffix(".png"))
        return
    require_seed(given.out, given.seed)
    use_cache()
    for data in given.data:
        for examples in given.examples:
            for contest in contests(data, examples):
                file = given.out / f"{contest.name}.json"
                wanted = not given.only or contest.attacker in given.only
                if file.exists() or not wanted or contest.arm not in given.arms:
                    continue
                found = run(contest, given.data_dir, given.seed)
                kept = {"contest": list(contest), "seed": given.seed} | found
                write_text(file, json.dumps(kept))
                ssims = mean(kept["images"]["ssim"], examples)
                print(*contest, ssims, f"{kept['processor_s']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
