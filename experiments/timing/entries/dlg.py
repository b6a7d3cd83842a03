"""Gradient inversion: evaluations of DLG's objective, and complete attacks.

Peers (`timing.peers.dlg`), each at the best of its settings on this machine, which is
found first:
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

from kljax import data, defences, metrics
from kljax.attacks import lbfgs_torch, normal, squared_l2
from kljax.attacks.presets import gradient_matching
from kljax.core.types import Private, Public
from kljax.federated.clients import local_gradient
from kljax.models import losses
from kljax.parallel import fastest_layout, map_victims

from ..device import on_gpu
from ..entry import Entry
from ..peak import matmul_peak, product_flops
from ..peers.dlg import Setting, TorchPeer, fastest
from ..resident import resident
from ..slow_form import slow_difference
from ..table import as_fields, line
from ..torch_layouts import lenet_in_torch
from ..turns import turns
from ..victims import CLASSES, SHAPE, lenet, undefended, view_of

PEERS = ("torch-eager", "torch-func", "torch-compile")


class Work(NamedTuple):
    """How much is run.

    Attributes:
      victims: N, of both entries, so that chunks which suit one fit the other.
      repeats: evaluations per victim and round.
      iterations: of a complete attack.
    """

    victims: int
    repeats: int
    iterations: int = 500


WORK = Work(64, repeats=20)
# Only many victims at once keep a GPU busy.
ON_GPU = Work(512, repeats=4)
# What fills the smallest chunks of the peers' two processes.
TINY = Work(16, repeats=1, iterations=3)


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
    model = lenet(convolution=convolution)

    def loss(params):
        logits = model.apply(params, {}, image[None], train=True).logits
        return losses.cross_entropy(logits, target[None])

    return squared_l2()(jax.grad(loss)(params), observed)


def evaluation(params, target, observed, image, convolution="auto"):
    """DLG's objective for one victim, and its image gradient."""
    return jax.value_and_grad(
        functools.partial(objective, convolution, params, target, observed)
    )(image)


def evaluation_runner(problem, layout, repeats, convolution="auto"):
    """Makes ``() -> seconds`` for some evaluations of every victim."""

    def one(params, target, observed, start):
        def step(image, _):
            value, grads = evaluation(params, target, observed, image, convolution)
            # A move, so that no evaluation can be left out.
            return image - 1e-3 * grads, value

        return jax.lax.scan(step, start, length=repeats)

    args = (problem.params, problem.targets, problem.observed, problem.starts)
    if on_gpu():
        timed, compile_s = resident(one, args, layout)
        return (lambda: timed()[0]), compile_s
    run = map_victims(one, layout)
    _, timing = run(*args)
    return (lambda: run(*args)[1].run_s), timing.compile_s


def attack_runner(problem, layout, iterations):
    """Makes ``() -> (seconds, images)`` for one complete attack on every victim."""
    setting = undefended(lenet())
    # Fixed steps without stopping rules, as the peers run them.
    optimiser = lbfgs_torch(
        history=20, max_iter=10**9, tolerance_grad=0.0, tolerance_change=0.0
    )

    def one(params, target, observed, start):
        attack = gradient_matching(
            setting,
            optimiser=optimiser,
            steps=iterations,
            restarts=1,
            start=lambda rng, shape: start[None],
        )
        view = view_of(params, Public(observed), target[None])
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
            name: Setting(**setting)
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


def evaluations(options, work):
    """Evaluations per second."""
    victims, repeats, _ = work
    problem = Problem(victims)
    layout = dataclasses.replace(fastest_layout("victims"), chunk=options.chunk)
    ours, compile_s = evaluation_runner(problem, layout, repeats)
    total = victims * repeats
    contestants = {"ours": lambda: total / ours()}
    with TorchPeer(options.torch_python, gpu=on_gpu()) as peer:
        chosen = best_peers(peer, options, problem)
        for name, setting in chosen.items():
            contestants[name] = lambda setting=setting: (
                peer.evaluations(setting, repeats=repeats).per_second
            )
        values = turns(options.rounds, contestants)
    flops, peak = evaluation_flops(problem), matmul_peak(options.tiny)
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
    return [line("dlg-lenet-eval", mine, values, "evaluations/s", settings, share)]


def attacks(options, work):
    """Complete attacks per hour, with both sides' success."""
    victims, _, iterations = work
    problem = Problem(victims)
    layout = dataclasses.replace(fastest_layout("victims"), chunk=options.chunk)
    ours = attack_runner(problem, layout, iterations)
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
                attack = peer.attack(setting, iterations=iterations)
                images[name] = np.moveaxis(attack.images, 1, -1)
                return 3600 * victims / attack.seconds

            contestants[name] = run_peer
        values = turns(options.rounds, contestants)
    mine = values.pop("ours")
    settings = {
        "victims": victims,
        "iterations": iterations,
        "layout": str(layout),
        "compile_s": compile_s,
        "peers": as_fields(chosen),
        "share_with_ssim_0.6": {name: recovered(x) for name, x in images.items()},
    }
    return [line("dlg-lenet-attack", mine, values, "attacks/h", settings, None)]


ENTRIES = (
    Entry(
        "dlg-lenet-eval",
        "values and image gradients of DLG's objective, LeNet at 32x32, every victim "
        "its own weights; in evaluations/s",
        evaluations,
        WORK,
        TINY,
        ON_GPU,
        PEERS,
    ),
    Entry(
        "dlg-lenet-attack",
        "complete attacks by fixed-step L-BFGS (step 1, memory 20), equal iterations "
        "and starts on both sides; in attacks/h, with the share of victims recovered "
        "by each side",
        attacks,
        WORK,
        TINY,
        ON_GPU,
        PEERS,
    ),
)
