"""CGI: a client poisons one class, and reads it off the next global network.

    python experiments/client_inversion.py [--trials 16] [--honest 1 2 4 8 16]
        [--images 1] [--arms none keylock] [--attacks zero full ...]
        [--folder runs/cgi]

Digits of 8 x 8 pixels; a dense network, trained centrally on 600 of them until it does
its job. N - 1 honest clients have four examples each, the first of them one of the
class under attack at least, and send the gradient of one step. The attacker has 64
examples of its own, and sees global networks alone. In a first round it sends its
poison; after the second it takes its own part out of what the network has moved by, and
inverts that by Inverting Gradients: --images of them, whose label is that class.
Attacks:

  no poison      the network as it was trained: what a client sees that only looks
  zero           the attacker knows nothing of what the others send
  full           it knows their sum, and takes it out of its upload
  RULE no poison the server has a rule, and the attacker only looks
  RULE naive     the attacker sends the same as `zero`
  RULE stealth   it mixes its poison with what is in the midst of what it believes that
                 others send (the one that Krum would take; the median): the largest
                 share that passes, by bisection; `full` knows the others' uploads,
                 `zero` makes as many of its own examples

Under a rule it inverts what the network has moved by as it is: of that its own part
cannot be taken out. Columns: recovered, of as many trials, by the rule of
`kljax.metrics.outcomes` against that one of the class's examples that is nearest to
what was found, with Wilson's interval of 95 %; mean squared error (median) beside that
of the best floor, which is chosen by the truth, of another image of the class, the mean
of the attacker's images, that of its class and grey; of the gradient that is inverted,
the share that examples of the class make (in norm); how often the rule sees the
attacker (`seen_by_krum`, `seen_by_order`); and the mean share of the poison.

Every line is kept in --folder as soon as it is there, and is not computed again.
Results: experiments/client_inversion.md.
"""

import argparse
import functools
import json
import time
import types
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tabulate import tabulate

from kljax import LeakConfig, data
from kljax.attacks.presets import PRESETS
from kljax.core.types import Private, Public
from kljax.federated import class_poisoning as cgi
from kljax.federated.aggregation import coordinate_median, krum, trimmed_mean
from kljax.federated.clients import Batches, Upload, local_gradient
from kljax.metrics.image import mse, ssim
from kljax.metrics.intervals import wilson
from kljax.metrics.outcomes import SUCCESS_FLOOR_SHARE, SUCCESS_SSIM
from kljax.parallel import Layout
from kljax.parallel.compilation import use_cache
from kljax.studies.builder.study import build_study
from kljax.threat import View

ARMS = {"none": "none", "keylock": "keylock/regress_gates"}
RULES = {
    "krum": (krum, cgi.seen_by_krum, krum, 4),
    "median": (coordinate_median, cgi.seen_by_order, coordinate_median, 2),
    "trimmed-mean": (trimmed_mean, cgi.seen_by_order, coordinate_median, 2),
}  # name -> rule, how it sees an attacker, what is in the midst, honest clients needed
PLAIN = ("no poison", "zero", "full")
STEALTH = ("no poison", "naive", "stealth, zero", "stealth, full")
EACH, OWN, PUBLIC = 4, 64, 600
RATE, LOCAL_RATE = 0.1, 0.5  # of the honest clients' step, of the attacker's training
HEAD = ("arm", "honest", "attack", "recovered", "MSE", "floor", "of class", "seen")
HEAD += ("share of poison",)


class Ground(NamedTuple):
    """What all trials of an arm share."""

    arm: str
    defence: object
    stats: dict
    gradient: object  # (Public, Private, images, targets) -> Public
    train: object  # (Public, Private, images, targets, steps) -> Public
    invert: object  # (rngs [n], Public [n], grads [n], targets [n, B]) -> images [n, B]
    start: Public
    lock_weights: object
    accuracy: float


class Trial(NamedTuple):
    """Who has what: positions in the digits."""

    target: int
    honest: np.ndarray  # [H, EACH]
    own: np.ndarray  # [OWN]


@functools.cache
def digits():
    """Gives digits [n, 8, 8, 1] in random order, and their labels."""
    dataset = data.load("digits", shape=(8, 8, 1))
    order = data.select(dataset, len(dataset), 0)
    images, labels = dataset.fetch(order)
    return np.asarray(images), np.asarray(labels)


def one_hot(labels):
    """Writes labels as targets."""
    return np.eye(10, dtype=np.float32)[labels]


def make_ground(arm: str, steps: int, count: int) -> Ground:
    """Builds the arm of a study, and trains its network on public digits."""
    config = LeakConfig(
        model="dense",
        image_size=8,
        channels=1,
        attack="inverting-gradients",
        labels="given",
        examples=count,
        steps=steps,
        victims=1,
        arms=(ARMS[arm],),
        layout=Layout("loop"),
    )
    study = build_study(config)
    (one,) = study.attacks
    model, defence = one.setting.task.model, one.arm.defence
    compute = local_gradient(model, study.task.loss, defence, train=True)
    images, labels = (values[:PUBLIC] for values in digits())
    images, targets = jnp.asarray(images), jnp.asarray(one_hot(labels))
    rng = jax.random.key(0)
    params, stats = model.init(rng)
    public, private = defence.init(jax.random.key(1), params)

    def gradient(public, private, images, targets):
        return compute(rng, public, stats, private, images, targets).public

    @jax.jit
    def pretrain(public):
        optimiser = optax.adam(0.01)

        def step(carry, number):
            public, memory = carry
            rng = jax.random.fold_in(jax.random.key(2), number)
            chosen = jax.random.choice(rng, PUBLIC, (64,))
            # Everybody's key is another: the network learns to work under any.
            own = private_of(defence, rng, params, private)
            grads = gradient(public, own, images[chosen], targets[chosen])
            moves, memory = optimiser.update(grads, memory, public)
            return (optax.apply_updates(public, moves), memory), None

        carry = public, optimiser.init(public)
        return jax.lax.scan(step, carry, jnp.arange(500))[0][0]

    @functools.partial(jax.jit, static_argnums=4)
    def train(public, private, images, targets, count):
        def step(public, _):
            grads = gradient(public, private, images, targets)
            return jax.tree.map(lambda p, g: p - LOCAL_RATE * g, public, grads), None

        return jax.lax.scan(step, public, length=count)[0]

    build = PRESETS["inverting-gradients"].build
    attack = build(one.setting, steps=steps, restarts=1)

    def invert(rng, public, grads, targets):
        view = View(public, stats, grads, None, targets, None, None, None)
        return attack(rng, view).inputs

    start = pretrain(Public(params, public))
    tested, truth = (values[-400:] for values in digits())
    gates = defence.gates(start.defence, private)
    logits = model.apply(start.model, stats, tested, gates=gates, train=False).logits
    accuracy = float(np.mean(np.argmax(logits, axis=1) == truth))
    return Ground(
        arm,
        defence,
        stats,
        jax.jit(gradient),
        train,
        jax.jit(jax.vmap(invert)),
        jax.device_get(start),
        private.trainable,
        accuracy,
    )


def private_of(defence, rng, params, like: Private) -> Private:
    """Draws a private key; lock weights are everybody's."""
    return like._replace(secret=defence.init(rng, params)[1].secret)


def make_trial(number: int, honest: int) -> Trial:
    """Deals digits out; of the first n clients of more, as of n.

    But for one example: where the first client has none of the class, it is given the
    first that is left, which is another one where more are dealt.
    """
    _, labels = digits()
    target = number % 10
    draw = np.random.default_rng([7, number])
    order = PUBLIC + draw.permutation(len(labels) - PUBLIC)
    own, rest = order[:OWN], order[OWN:]
    dealt = rest[: EACH * honest].reshape(honest, EACH).copy()
    if not np.any(labels[dealt[0]] == target):
        dealt[0, 0] = rest[EACH * honest :][labels[rest[EACH * honest :]] == target][0]
    return Trial(target, dealt, own)


def scaled(tree, factor):
    """Multiplies a tree."""
    return jax.tree.map(lambda x: factor * x, tree)


def stacked(trees):
    """Puts trees side by side."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def moved(public, change):
    """Adds a change."""
    return jax.tree.map(jnp.add, public, change)


@functools.partial(jax.jit, static_argnums=0)
def finish(rule, changes):
    """Aggregates changes, side by side, by a rule of kljax."""
    count = len(jax.tree.leaves(changes)[0])
    server = types.SimpleNamespace(aggregator=())  # what it remembers: nothing
    return rule().finish(server, Upload(changes, {}), jnp.ones(count))[0].delta


class Attacked(NamedTuple):
    """What the attacker has after two rounds, and what is true of it."""

    public: Public
    grads: Public
    of_class: float
    seen: bool | None
    share: float


def play(ground: Ground, trial: Trial, attack: str) -> Attacked:
    """Plays two rounds."""
    images, labels = digits()
    honest, clients = len(trial.honest), len(trial.honest) + 1
    params = ground.start.model

    def key_of(client: int) -> Private:
        rng = jax.random.fold_in(jax.random.key(3), client)
        like = Private((), ground.lock_weights)
        drawn = private_of(ground.defence, rng, params, like)
        return jax.device_get(drawn)

    keys = [key_of(int(own[0])) for own in trial.honest]
    mine = key_of(int(trial.own[0]))

    def send(public, private, chosen):
        targets = one_hot(labels[chosen])
        return scaled(ground.gradient(public, private, images[chosen], targets), -RATE)

    def uploads(public):
        return [send(public, *one) for one in zip(keys, trial.honest, strict=True)]

    rule_name, _, how = attack.partition(" ")
    rule, sees, middle, _ = RULES.get(rule_name, (None, None, None, 1))

    def aggregate(sent, rule=rule):
        if rule is None:
            return jax.tree.map(lambda x: jnp.mean(x, axis=0), stacked(sent))
        return finish(rule, stacked(sent))

    public, seen, share = ground.start, None, 0.0
    if not attack.endswith("no poison"):
        batch = Batches(images[trial.own], labels[trial.own], ())
        targets = one_hot(cgi.relabelled(batch, trial.target, 10).labels)
        trained = ground.train(public, mine, batch.inputs, targets, 200)
        change = jax.tree.map(jnp.subtract, trained, public)
        benign = uploads(public)
        total = jax.tree.map(lambda *leaves: sum(leaves), *benign)
        knows = attack.endswith("full")
        poison, share = cgi.scaled(change, clients, total if knows else None), 1.0
        if how.startswith("stealth"):
            believed = benign
            if not knows:
                draw = np.random.default_rng(len(trial.own))
                picks = [draw.choice(trial.own, EACH) for _ in range(honest)]
                believed = [send(public, mine, chosen) for chosen in picks]
            midst = aggregate(believed, middle)

            def passes(upload) -> bool:
                return not sees(stacked([upload, *believed]), 0)

            share = cgi.largest_share(midst, poison, passes)
            poison = cgi.mixed(midst, poison, share)
        sent = [poison, *benign]
        seen = None if sees is None else sees(stacked(sent), 0)
        public = moved(public, aggregate(sent))
    own = send(public, mine, trial.own)
    move = aggregate([own, *uploads(public)])
    # Of a rule's aggregate nobody can take one upload out.
    change = move if sees else cgi.others_mean(move, own, clients)
    return Attacked(
        public,
        scaled(change, -1 / RATE),
        share_of_class(ground, trial, public, keys),
        seen,
        share,
    )


def share_of_class(ground: Ground, trial: Trial, public: Public, keys) -> float:
    """Computes |gradient of the class| / (that + |gradient of all others|)."""
    images, labels = digits()

    def norm(of_class: bool) -> float:
        parts = []
        for private, own in zip(keys, trial.honest, strict=True):
            for one in own:
                if (labels[one] == trial.target) == of_class:
                    chosen = np.array([one])
                    targets = one_hot(labels[chosen])
                    parts.append(
                        ground.gradient(public, private, images[chosen], targets)
                    )
        if not parts:
            return 0.0
        return float(optax.tree.norm(jax.tree.map(lambda *x: sum(x), *parts)))

    mine, others = norm(True), norm(False)
    return mine / (mine + others)


def scores(found: np.ndarray, trial: Trial) -> dict:
    """Scores what was found beside the floors, each against the nearest truth."""
    images, labels = digits()
    truths = images[trial.honest.ravel()]
    truths = truths[labels[trial.honest.ravel()] == trial.target]
    own, same = images[trial.own], images[trial.own][labels[trial.own] == trial.target]
    floors = [np.full_like(own[0], 0.5), own.mean(axis=0)]
    if len(same):
        floors += [same.mean(axis=0), same[0]]

    def nearest(guesses) -> tuple[float, float]:
        pairs = [(guess, truth) for guess in guesses for truth in truths]
        return min((float(mse(*pair)), -float(ssim(*pair))) for pair in pairs)

    error, like = nearest(np.clip(found, 0, 1))
    floor, _ = nearest(floors)
    recovered = -like >= SUCCESS_SSIM and error <= SUCCESS_FLOOR_SHARE * floor
    return {"recovered": bool(recovered), "mse": error, "floor": floor}


def compute(ground: Ground, honest: int, attack: str, trials: int, count: int) -> dict:
    """Attacks all trials of a line."""
    dealt = [make_trial(number, honest) for number in range(trials)]
    attacked = [play(ground, trial, attack) for trial in dealt]
    targets = one_hot(np.array([[trial.target] * count for trial in dealt]))
    found = ground.invert(
        jax.random.split(jax.random.key(5), trials),
        stacked([one.public for one in attacked]),
        stacked([one.grads for one in attacked]),
        targets,
    )
    rows = [scores(np.asarray(f), trial) for f, trial in zip(found, dealt, strict=True)]
    for row, one in zip(rows, attacked, strict=True):
        row |= {"of_class": one.of_class, "seen": one.seen, "share": float(one.share)}
    return {"rows": rows}


def line(arm: str, honest: int, attack: str, rows: list[dict]) -> list[str]:
    """Writes one line of the table."""
    count, hits = len(rows), sum(row["recovered"] for row in rows)
    sure = wilson(hits, count)
    middle = {name: np.median([row[name] for row in rows]) for name in ("mse", "floor")}
    seen = [row["seen"] for row in rows]
    return [
        arm,
        str(honest),
        attack,
        f"{hits}/{count} [{100 * sure.low:.0f}, {100 * sure.high:.0f}] %",
        f"{middle['mse']:.3f}",
        f"{middle['floor']:.3f}",
        f"{np.mean([row['of_class'] for row in rows]):.2f}",
        "-" if seen[0] is None else f"{sum(seen)}/{count}",
        "-"
        if attack.endswith("no poison")
        else f"{np.mean([r['share'] for r in rows]):.2g}",
    ]


def lines_of(arm: str, honest: int) -> list[str]:
    """Lists the attacks of a number of honest clients."""
    if arm != "none":
        return list(PLAIN)
    rules = [name for name, (*_, least) in RULES.items() if honest >= least]
    return [*PLAIN, *(f"{rule} {how}" for rule in rules for how in STEALTH)]


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--honest", type=int, nargs="+", default=(1, 2, 4, 8, 16))
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--attacks", nargs="+")
    parser.add_argument("--arms", nargs="+", default=tuple(ARMS), choices=tuple(ARMS))
    parser.add_argument("--folder", type=Path, default=Path("runs/cgi"))
    given = parser.parse_args()
    use_cache()
    given.folder.mkdir(parents=True, exist_ok=True)
    began, lines = time.process_time(), []
    for arm in given.arms:
        ground = functools.cache(
            lambda arm=arm: make_ground(arm, given.steps, given.images)
        )
        for honest in given.honest:
            for attack in lines_of(arm, honest):
                if given.attacks and attack not in given.attacks:
                    continue
                sizes = f"{given.images}-{given.trials}-{given.steps}"
                name = f"{arm}-{honest}-{attack}-{sizes}.json"
                path = given.folder / name.replace(" ", "_").replace(",", "")
                if not path.exists():
                    found = compute(
                        ground(), honest, attack, given.trials, given.images
                    )
                    found |= {"accuracy": ground().accuracy}
                    path.with_suffix(".part").write_text(json.dumps(found))
                    path.with_suffix(".part").rename(path)
                found = json.loads(path.read_text())
                lines.append(line(arm, honest, attack, found["rows"]))
                print(*lines[-1], sep=" | ", flush=True)
        print(f"accuracy of arm {arm}: {found['accuracy']:.3f}\n", flush=True)
    print(tabulate(lines, HEAD, tablefmt="github", disable_numparse=True))
    print(f"\n{(time.process_time() - began) / 60:.1f} processor minutes")


if __name__ == "__main__":
    main()
