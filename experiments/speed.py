"""Measures kljax beside its strongest peers, round by round in turns.

    python experiments/speed.py --json FILE [--only NAME ...] [--rounds 5]
        [--torch-python PYTHON] [--peers-from FILE]

Names:
  dlg-lenet-eval    values and image gradients of DLG's objective, LeNet at 32x32, every
                    victim its own weights; in evaluations/s
  dlg-lenet-attack  complete attacks by fixed-step L-BFGS (step 1, memory 20), equal
                    iterations and starts on both sides; in attacks/h, with the share
                    of victims recovered by each side
  convolution       the formulations of `kljax.convolution` and the layouts of
                    `kljax.mapping` against each other; in evaluations/s

Peers run in processes of their own (PyTorch's and XLA's thread pools disturb each
other), each at the best of its settings on this machine, found first:
  torch-eager       one victim at a time, `torch.autograd.grad`, 1 or 2 threads
  torch-func        `torch.func.vmap` at its best chunk, 1 or 2 threads
  torch-compile     the same under torch.compile; beyond what users write, and the
                    strongest peer we know
  ...-2-processes   the best of each with the victims dealt to two processes

Every figure is the median over rounds; the range is beside it. Compilation is timed
apart. `matmul_peak_share` is the rate of floating-point operations inside matrix
products, counted in the traced program, over the rate of one large product on the same
devices. PyTorch comes with the extra `peers`.
"""

import argparse
import functools
import importlib.util
import json
import os
import statistics
import sys
import time
from pathlib import Path

import jax

# One host device per core, as the command line does; before JAX wakes up.
if "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    jax.config.update("jax_num_cpu_devices", os.cpu_count())

import jax.numpy as jnp
import numpy as np
from torch_peer import FORMS, PARAMETERS, TorchPeer, fastest
from torch_peer import Setting as PeerSetting

from kljax import data, defences, losses, metrics
from kljax.attacks import Setting, lbfgs_torch, normal, squared_l2
from kljax.attacks.presets import gradient_matching
from kljax.clients import local_gradient
from kljax.mapping import Layout, map_victims
from kljax.models import LeNet, from_nnx, uniform
from kljax.threat import Strategy, View, least_knowledge
from kljax.typing import Private, Public

VICTIMS = 64
ATTACKED = 32  # victims of the complete attacks, which take long
REPEATS = 20  # evaluations per victim and round
ITERATIONS = 500  # of a complete attack
SHAPE, CLASSES = (32, 32, 3), 10


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
        chosen = data.select(digits, count, seed=0)
        self.images, self.labels = digits.fetch(chosen)
        rngs = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(chosen)
        self.params, _ = jax.vmap(lenet().init)(rngs)
        self.targets = np.eye(CLASSES, dtype=np.float32)[self.labels]
        start = normal(0.5, 0.1)
        self.starts = np.asarray(jax.vmap(lambda rng: start(rng, SHAPE))(rngs))
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
        weights = {}
        for name in PARAMETERS:
            layer, kind = name.split("/")
            value = np.asarray(
                self.params[f"{layer}/{'kernel' if kind == 'weight' else 'bias'}"]
            )
            if value.ndim == 5:  # HWIO -> OIHW
                value = value.transpose(0, 4, 3, 1, 2)
            elif value.ndim == 3:  # [H * W * C, Kc] -> [Kc, C * H * W]
                value = value.reshape(-1, 8, 8, 12, CLASSES).transpose(0, 4, 3, 1, 2)
                value = value.reshape(len(value), CLASSES, -1)
            weights[name] = value
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


def evaluation_runner(problem, layout, convolution="auto"):
    """Makes ``() -> seconds`` for REPEATS evaluations of every victim."""

    def one(params, target, observed, start):
        evaluate = jax.value_and_grad(
            functools.partial(objective, convolution, params, target, observed)
        )

        def step(image, _):
            value, grads = evaluate(image)
            # A move, so that no evaluation can be left out.
            return image - 1e-3 * grads, value

        return jax.lax.scan(step, start, length=REPEATS)

    run = map_victims(one, layout)
    args = (problem.params, problem.targets, problem.observed, problem.starts)
    _, timing = run(*args)
    return (lambda: run(*args)[1].run_s), timing.compile_s


def attack_runner(problem, layout):
    """Makes ``() -> (seconds, images)`` for one complete attack on every victim."""
    threat = least_knowledge(Strategy(lock="unit", labels="given"))
    none = defences.none()
    setting = Setting(
        lenet(),
        losses.cross_entropy,
        none.gates,
        none.simulate,
        SHAPE,
        CLASSES,
        "fc",
        (),
        threat,
    )
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
        return attack(jax.random.key(0), view).images[0]

    run = map_victims(one, layout)
    args = (problem.params, problem.targets, problem.observed, problem.starts)

    def timed():
        images, timing = run(*args)
        return timing.run_s, images, timing.compile_s

    return timed


def matmul_peak():
    """Measures floating-point operations per second of one large product a device."""
    size = 2048
    devices = jax.local_device_count()
    run = map_victims(lambda a: a @ a, Layout("sharded", 1))
    matrices = np.random.default_rng(0).normal(size=(devices, size, size))
    matrices = matrices.astype(np.float32)
    run(matrices)
    # Several products per call, or moving the result would be timed.
    chained = map_victims(
        lambda a: jax.lax.fori_loop(0, 10, lambda _, x: x @ a / size, a),
        Layout("sharded", 1),
    )
    chained(matrices)
    seconds = min(chained(matrices)[1].run_s for _ in range(3))
    return 10 * devices * 2 * size**3 / seconds


def product_flops(fn, *args):
    """Counts the floating-point operations of all matrix products `fn` traces to."""

    def count(jaxpr):
        total = 0
        for eqn in jaxpr.eqns:
            for value in eqn.params.values():
                for sub in value if isinstance(value, (tuple, list)) else (value,):
                    sub = getattr(sub, "jaxpr", sub)
                    total += count(sub) if hasattr(sub, "eqns") else 0
            if eqn.primitive.name == "dot_general":
                (contract, _), _ = eqn.params["dimension_numbers"]
                shape = eqn.invars[0].aval.shape
                depth = int(np.prod([shape[axis] for axis in contract]))
                total += 2 * depth * int(np.prod(eqn.outvars[0].aval.shape))
        return total

    return count(jax.make_jaxpr(fn)(*args).jaxpr)


def evaluation_flops(problem):
    """Floating-point operations in products, for one evaluation of one victim."""
    first = jax.tree.map(
        lambda x: x[0],
        (problem.params, problem.targets, problem.observed, problem.starts),
    )
    return product_flops(
        lambda p, t, o, x: jax.value_and_grad(
            functools.partial(objective, "matmul", p, t, o)
        )(x),
        *first,
    )


def spread(values):
    """Median and range."""
    return {
        "median": statistics.median(values),
        "low": min(values),
        "high": max(values),
    }


def entry(name, ours, peers, unit, settings, share):
    """One line of the table; `ours` and `peers` hold a value per round."""
    ratios = {
        peer: statistics.median(a / b for a, b in zip(ours, values, strict=True))
        for peer, values in peers.items()
    }
    return {
        "name": name,
        "ours": spread(ours),
        "peers": {peer: spread(values) for peer, values in peers.items()},
        "ratios": ratios,
        "unit": unit,
        "device": f"{jax.default_backend()}: {jax.devices()[0].device_kind}, "
        f"{jax.local_device_count()} devices, {os.cpu_count()} cores",
        "settings": settings,
        "matmul_peak_share": share,
    }


def best_peers(peer, options, processes=(1, 2)):
    """Finds each peer's best setting here, for each number of processes.

    With --peers-from they are those that an earlier run found: the search takes ten
    minutes, most of them compiling.
    """
    if options.peers_from:
        before = json.loads(options.peers_from.read_text())[0]["settings"]["peers"]
        chosen = {
            name: PeerSetting(**setting)
            for name, setting in before.items()
            if setting["processes"] in processes
            and name.removesuffix("-2-processes") in options.peers
        }
        for setting in chosen.values():
            peer.warm(setting)
        return chosen
    chosen = {}
    for name in options.peers:
        settings = FORMS[name.removeprefix("torch-").replace("compile", "compiled")]
        for count in processes:
            some = [s for s in settings if s.processes == count]
            suffix = "" if count == 1 else f"-{count}-processes"
            chosen[name + suffix] = fastest(peer, some)[0]
    return chosen


def turns(rounds, contestants):
    """Runs everybody once per round, in turns: {name: [value per round]}."""
    values = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            values[name].append(run())
    return values


def dlg_lenet_eval(options):
    """Evaluations per second."""
    problem = Problem(VICTIMS)
    layout = Layout("sharded", options.chunk)
    ours, compile_s = evaluation_runner(problem, layout)
    total = VICTIMS * REPEATS
    contestants = {"ours": lambda: total / ours()}
    with TorchPeer(options.torch_python) as peer:
        peer.load(*problem.in_torch())
        chosen = best_peers(peer, options)
        for name, setting in chosen.items():
            contestants[name] = lambda setting=setting: (
                peer.evaluations(setting, repeats=REPEATS).per_second
            )
        values = turns(options.rounds, contestants)
    flops, peak = evaluation_flops(problem), matmul_peak()
    mine = values.pop("ours")
    settings = {
        "victims": VICTIMS,
        "layout": str(layout),
        "compile_s": compile_s,
        "peers": {name: setting._asdict() for name, setting in chosen.items()},
        "flops_per_evaluation": flops,
        "matmul_peak_gflops": peak / 1e9,
    }
    share = statistics.median(mine) * flops / peak
    return [entry("dlg-lenet-eval", mine, values, "evaluations/s", settings, share)]


def dlg_lenet_attack(options):
    """Complete attacks per hour, with both sides' success."""
    problem = Problem(ATTACKED)
    layout = Layout("sharded", options.chunk)
    ours = attack_runner(problem, layout)
    compile_s = ours()[2]
    images = {}

    def recovered(found):
        scores = jax.vmap(metrics.ssim)(jnp.asarray(found), problem.images)
        return float(np.mean(np.asarray(scores) >= metrics.SUCCESS_SSIM))

    def run_ours():
        seconds, images["ours"], _ = ours()
        return 3600 * ATTACKED / seconds

    contestants = {"ours": run_ours}
    with TorchPeer(options.torch_python) as peer:
        peer.load(*problem.in_torch())
        chosen = best_peers(peer, options, processes=(1,))
        for name, setting in chosen.items():

            def run_peer(name=name, setting=setting):
                attack = peer.attack(setting, iterations=ITERATIONS)
                images[name] = np.moveaxis(attack.images, 1, -1)
                return 3600 * ATTACKED / attack.seconds

            contestants[name] = run_peer
        values = turns(options.rounds, contestants)
    mine = values.pop("ours")
    settings = {
        "victims": ATTACKED,
        "iterations": ITERATIONS,
        "layout": str(layout),
        "compile_s": compile_s,
        "peers": {name: setting._asdict() for name, setting in chosen.items()},
        "share_with_ssim_0.6": {name: recovered(x) for name, x in images.items()},
    }
    return [entry("dlg-lenet-attack", mine, values, "attacks/h", settings, None)]


def convolution(options):
    """Formulations and layouts against each other."""
    problem = Problem(VICTIMS)
    candidates = {
        f"{kind}, chunk {chunk}, {name}": (Layout(kind, chunk), name)
        for kind, chunk, name in (
            ("sharded", 8, "matmul"),
            ("sharded", 8, "lax"),
            ("sharded", 4, "matmul"),
            ("sharded", 16, "matmul"),
            ("sharded", 32, "matmul"),
            ("chunked", 8, "matmul"),
            ("chunked", 32, "matmul"),
            ("vmap", 8, "matmul"),
            ("loop", 1, "matmul"),
            ("loop", 1, "lax"),
        )
    }
    contestants, compile_s = {}, {}
    for label, (layout, name) in candidates.items():
        run, compile_s[label] = evaluation_runner(problem, layout, name)
        contestants[label] = lambda run=run: VICTIMS * REPEATS / run()
    values = turns(options.rounds, contestants)
    first, *_ = candidates
    settings = {"victims": VICTIMS, "ours": first, "compile_s": compile_s}
    mine = values.pop(first)
    return [entry("convolution", mine, values, "evaluations/s", settings, None)]


NAMES = {
    "dlg-lenet-eval": dlg_lenet_eval,
    "dlg-lenet-attack": dlg_lenet_attack,
    "convolution": convolution,
}


def main():
    """Runs what was asked for; writes after each entry, so that a stop loses one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--chunk", type=int, default=Layout().chunk)
    parser.add_argument("--torch-python", default=sys.executable)
    parser.add_argument("--peers-from", type=Path, help="JSON of an earlier run")
    parser.add_argument(
        "--peers",
        nargs="*",
        default=["torch-eager", "torch-func", "torch-compile"],
        choices=["torch-eager", "torch-func", "torch-compile"],
    )
    options = parser.parse_args()
    missing = not importlib.util.find_spec("torch")
    wanted = options.peers and set(options.only) != {"convolution"}
    if wanted and missing and options.torch_python == sys.executable:
        parser.error(
            "PyTorch is not installed here: pip install 'kljax[peers]', or name a "
            "Python that has it with --torch-python"
        )
    entries = []
    with jax.default_matmul_precision("highest"):
        for name in options.only:
            for made in NAMES[name](options):
                entries.append(made)
                ours = made["ours"]
                print(
                    f"{made['name']}: ours {ours['median']:.0f} "
                    f"[{ours['low']:.0f}, {ours['high']:.0f}] {made['unit']}",
                    f"matmul peak share {made['matmul_peak_share']}",
                    flush=True,
                )
                for peer, values in made["peers"].items():
                    print(
                        f"  {peer}: {values['median']:.0f} [{values['low']:.0f}, "
                        f"{values['high']:.0f}], ratio {made['ratios'][peer]:.2f}",
                        flush=True,
                    )
            options.json.write_text(json.dumps(entries, indent=2) + "\n")
    print(f"{time.strftime('%Y-%m-%d')}: written {options.json}")


if __name__ == "__main__":
    main()
