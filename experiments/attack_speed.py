"""Gradient inversion: evaluations of DLG's objective, and complete attacks.

Peers (`torch_peer`), each at the best of its settings on this machine, found first:
  torch-eager       one victim at a time, `torch.autograd.grad`, 1 or 2 threads
  torch-func        `torch.func.vmap` at its best chunk, 1 or 2 threads
  torch-compile     the same under torch.compile; beyond what users write, and the
                    strongest peer we know
  ...-2-processes   the best of each with the victims dealt to two processes
"""

import dataclasses
import functools
import json
import statistics
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from peak import matmul_peak, product_flops
from resident import resident
from slow_form import slow_difference
from table import as_fields, entry, layout_title, on_gpu, ranking, turns
from torch_layouts import lenet_in_torch
from torch_peer import Setting as PeerSetting
from torch_peer import TorchPeer, fastest

from kljax import data, defences, metrics
from kljax.attacks import (
    AssumedDefence,
    Setting,
    Task,
    lbfgs_torch,
    normal,
    squared_l2,
)
from kljax.attacks.presets import gradient_matching
from kljax.core.inputs import images_of
from kljax.core.targets import classes_of
from kljax.core.types import Private, Public
from kljax.federated.clients import local_gradient
from kljax.models import LeNet, from_nnx, losses, uniform
from kljax.parallel import Layout, fastest_layout, map_victims
from kljax.threat import Strategy, View, least_knowledge

ITERATIONS = 500  # of a complete attack
SHAPE, CLASSES = (32, 32, 3), 10
PEERS = ("torch-eager", "torch-func", "torch-compile")


class Size(NamedTuple):
    """How much is run.

    Attributes:
      victims: N, of both entries, so that chunks which suit one fit the other.
      repeats: evaluations per victim and round.
      candidates: (layout, formulation) of the entry `convolution`, ours first.
    """

    victims: int
    repeats: int
    candidates: tuple[tuple[Layout, str], ...]


CPU = Size(
    64,
    20,
    (
        (Layout("sharded", 8), "bilinear"),
        (Layout("sharded_loop", 8), "bilinear"),
        (Layout("sharded_loop", 8), "matmul"),
        (Layout("sharded", 8), "matmul"),
        (Layout("sharded", 8), "lax"),
        (Layout("sharded", 4), "matmul"),
        (Layout("sharded", 16), "matmul"),
        (Layout("sharded", 32), "matmul"),
        (Layout("chunked", 8), "matmul"),
        (Layout("chunked", 32), "matmul"),
        (Layout("vmap"), "matmul"),
        (Layout("loop"), "matmul"),
        (Layout("loop"), "lax"),
    ),
)
# Only many victims at once keep a GPU busy.
GPU = Size(
    512,
    4,
    (
        (Layout("sharded", 64), "matmul"),
        (Layout("sharded", 64), "lax"),
        (Layout("sharded", 8), "matmul"),
        (Layout("sharded", 256), "matmul"),
        (Layout("sharded", 512), "matmul"),
        (Layout("sharded", 512), "lax"),
        (Layout("loop"), "lax"),
    ),
)


def size():
    """What suits the backend."""
    return GPU if on_gpu() else CPU


def lenet(convolution="auto"):
    """The undefended LeNet of DLG."""
    return from_nnx(
        lambda rngs: LeNet(CLASSES, initialiser=uniform(0.5), rngs=rngs),
        convolution=convolution,
    )


class Problem:
    """The victims, once for everybody: real images, own weights, common starts."""

    def __init__(self, count):
        digits = data.load("digits")
        # More victims than there are images begin again.
        chosen = data.select(digits, min(count, len(digits)), seed=0)
        chosen = np.resize(chosen, count)
        self.images, self.labels = digits.fetch(chosen)
        rngs = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(chosen)
        weights, starts = jax.vmap(jax.random.split, out_axes=1)(rngs)
        self.params, _ = jax.vmap(lenet().init)(weights)
        self.targets = np.eye(CLASSES, dtype=np.float32)[self.labels]
        start = normal(0.5, 0.1)
        self.starts = np.asarray(jax.vmap(lambda rng: start(rng, SHAPE))(starts))
        gradient = local_gradient(
            lenet(), losses.cross_entropy, defences.none(), train=True
        )
        self.observed = jax.jit(
            jax.vmap(
                lambda params, image, target: (
                    gradient(
                        jax.random.key(0),
                        Public(params),
                        {},
                        Private(),
                        image[None],
                        target[None],
                    ).public.model
                )
            )
        )(self.params, self.images, self.targets)

    def in_torch(self):
        """The same, as `TorchPeer.load` wants it."""
        weights = lenet_in_torch(self.params)
        nchw = functools.partial(np.moveaxis, source=-1, destination=1)
        return weights, nchw(self.images), self.labels, nchw(self.starts)


def objective(convolution, params, target, observed, image):
    """DLG's objective for one victim."""
    gradient = jax.grad(
        lambda params: losses.cross_entropy(
            lenet(convolution).apply(params, {}, image[None], train=True).logits,
            target[None],
        )
    )(params)
    return squared_l2()(gradient, observed)


def evaluation(params, target, observed, image, convolution="auto"):
    """DLG's objective for one victim, and its image gradient."""
    return jax.value_and_grad(
        functools.partial(objective, convolution, params, target, observed)
    )(image)


def evaluation_runner(problem, layout, convolution="auto"):
    """Makes ``() -> seconds`` for `Size.repeats` evaluations of every victim."""

    def one(params, target, observed, start):
        def step(image, _):
            value, grads = evaluation(params, target, observed, image, convolution)
            # A move, so that no evaluation can be left out.
            return image - 1e-3 * grads, value

        return jax.lax.scan(step, start, length=size().repeats)

    args = (problem.params, problem.targets, problem.observed, problem.starts)
    if on_gpu():
        timed, compile_s = resident(one, args, layout)
        return (lambda: timed()[0]), compile_s
    run = map_victims(one, layout)
    _, timing = run(*args)
    return (lambda: run(*args)[1].run_s), timing.compile_s


def attack_runner(problem, layout):
    """Makes ``() -> (seconds, images)`` for one complete attack on every victim."""
    threat = least_knowledge(Strategy(secret="unit", labels="given"))
    none = defences.none()
    task = Task(
        lenet(), losses.cross_entropy, images_of(SHAPE), classes_of(CLASSES), "fc"
    )
    setting = Setting(task, threat, AssumedDefence(none.gates, none.simulate))
    # Fixed steps without stopping rules, as the peers run them.
    optimiser = lbfgs_torch(
        history=20, max_iter=10**9, tolerance_grad=0.0, tolerance_change=0.0
    )

    def one(params, target, observed, start):
        attack = gradient_matching(
            setting,
            optimiser=optimiser,
            steps=ITERATIONS,
            restarts=1,
            start=lambda rng, shape: start[None],
        )
        view = View(
            Public(params), {}, Public(observed), None, target[None], None, None, None
        )
        return attack(jax.random.key(0), view).inputs[0]

    run = map_victims(one, layout)
    args = (problem.params, problem.targets, problem.observed, problem.starts)

    def timed():
        images, timing = run(*args)
        return timing.run_s, images, timing.compile_s

    return timed


def evaluation_flops(problem):
    """Floating-point operations in products, for one evaluation of one victim."""
    first = jax.tree.map(
        lambda x: x[0],
        (problem.params, problem.targets, problem.observed, problem.starts),
    )
    return product_flops(functools.partial(evaluation, convolution="matmul"), *first)


def best_peers(peer, options, problem, processes=(1, 2)):
    """Sends the victims; finds each peer's best setting, for each number of processes.

    With --peers-from they are those that an earlier run found: the search takes ten
    minutes, most of them compiling.
    """
    names = [name for name in PEERS if name in options.peers]
    if not names:
        return {}
    peer.load(*problem.in_torch())
    if options.peers_from:
        entries = json.loads(options.peers_from.read_text())
        first = next(made for made in entries if made["name"].startswith("dlg"))
        before = first["settings"]["peers"]
        chosen = {
            name: PeerSetting(**setting)
            for name, setting in before.items()
            if setting["processes"] in processes
            and name.removesuffix("-2-processes") in names
        }
        for setting in chosen.values():
            peer.warm(setting)
        return chosen
    chosen = {}
    for name in names:
        settings = peer.forms[
            name.removeprefix("torch-").replace("compile", "compiled")
        ]
        for count in processes:
            some = [s for s in settings if s.processes == count]
            suffix = "" if count == 1 else f"-{count}-processes"
            if some:
                chosen[name + suffix] = fastest(peer, some)[0]
    return chosen


def dlg_lenet_eval(options):
    """Evaluations per second."""
    victims, repeats, _ = size()
    problem = Problem(victims)
    layout = dataclasses.replace(fastest_layout("victims"), chunk=options.chunk)
    ours, compile_s = evaluation_runner(problem, layout)
    total = victims * repeats
    contestants = {"ours": lambda: total / ours()}
    with TorchPeer(options.torch_python, gpu=on_gpu()) as peer:
        chosen = best_peers(peer, options, problem)
        for name, setting in chosen.items():
            contestants[name] = lambda setting=setting: (
                peer.evaluations(setting, repeats=repeats).per_second
            )
        values = turns(options.rounds, contestants)
    flops, peak = evaluation_flops(problem), matmul_peak()
    mine = values.pop("ours")
    some = problem.params, problem.targets, problem.observed, problem.starts
    slow = functools.partial(evaluation, convolution="lax")
    settings = {
        "victims": victims,
        "layout": str(layout),
        "compile_s": compile_s,
        "difference_to_slow_form": slow_difference(evaluation, slow, some, layout),
        "peers": as_fields(chosen),
        "flops_per_evaluation": flops,
        "matmul_peak_gflops": peak / 1e9,
    }
    share = statistics.median(mine) * flops / peak
    return [entry("dlg-lenet-eval", mine, values, "evaluations/s", settings, share)]


def dlg_lenet_attack(options):
    """Complete attacks per hour, with both sides' success."""
    victims = size().victims
    problem = Problem(victims)
    layout = dataclasses.replace(fastest_layout("victims"), chunk=options.chunk)
    ours = attack_runner(problem, layout)
    compile_s = ours()[2]
    images = {}

    def recovered(found):
        scores = jax.vmap(metrics.ssim)(jnp.asarray(found), problem.images)
        return float(np.mean(np.asarray(scores) >= metrics.SUCCESS_SSIM))

    def run_ours():
        seconds, images["ours"], _ = ours()
        return 3600 * victims / seconds

    contestants = {"ours": run_ours}
    with TorchPeer(options.torch_python, gpu=on_gpu()) as peer:
        chosen = best_peers(peer, options, problem, processes=(1,))
        for name, setting in chosen.items():

            def run_peer(name=name, setting=setting):
                attack = peer.attack(setting, iterations=ITERATIONS)
                images[name] = np.moveaxis(attack.images, 1, -1)
                return 3600 * victims / attack.seconds

            contestants[name] = run_peer
        values = turns(options.rounds, contestants)
    mine = values.pop("ours")
    settings = {
        "victims": victims,
        "iterations": ITERATIONS,
        "layout": str(layout),
        "compile_s": compile_s,
        "peers": as_fields(chosen),
        "share_with_ssim_0.6": {name: recovered(x) for name, x in images.items()},
    }
    return [entry("dlg-lenet-attack", mine, values, "attacks/h", settings, None)]


def convolution(options):
    """Formulations and layouts against each other."""
    victims, repeats, candidates = size()
    problem = Problem(victims)
    contestants, compile_s = {}, {}
    for layout, name in candidates:
        label = f"{layout_title(layout)}, {name}"
        run, compile_s[label] = evaluation_runner(problem, layout, name)
        contestants[label] = lambda run=run: victims * repeats / run()
    settings = {"victims": victims, "compile_s": compile_s}
    unit = "evaluations/s"
    return [ranking("convolution", options.rounds, contestants, unit, settings)]


NAMES = {
    "dlg-lenet-eval": dlg_lenet_eval,
    "dlg-lenet-attack": dlg_lenet_attack,
    "convolution": convolution,
}
