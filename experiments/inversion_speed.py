"""Entries of the speed table about deeper networks and whole updates.

Peers (`inversion_peer`), each at the best of its settings on this machine, found first:
  torch-eager       one victim at a time, `torch.autograd.grad`, 1 or 2 threads
  torch-func        `torch.func.vmap` at its best chunk, 1 or 2 threads
  ...-2-processes   the best of each with the victims dealt to two processes
"""

import functools
import statistics
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from inversion_peer import PEERS, InversionPeer, fastest
from peak import matmul_peak, product_flops
from resident import resident
from slow_form import slow_difference
from table import (
    as_fields,
    beside_peers,
    entry,
    largest_differences,
    layout_title,
    on_gpu,
    ranking,
)

from kljax import data, defences
from kljax.attacks import (
    AssumedDefence,
    Candidate,
    Protocol,
    Setting,
    Task,
    cosine,
    replay,
    total_variation,
)
from kljax.attacks.generators import (
    generated_images,
    generated_labels,
    image_branch,
    label_branch,
)
from kljax.attacks.objectives import l2_norm
from kljax.attacks.optimisers import rmsprop
from kljax.attacks.priors import squared_variation
from kljax.core.inputs import images_of
from kljax.core.targets import classes_of
from kljax.core.types import Private, Public
from kljax.models import NETWORKS, from_nnx, losses
from kljax.parallel import Layout, map_victims
from kljax.threat import Strategy, View, least_knowledge

SHAPE, CLASSES = (32, 32, 3), 10
RATE, VARIATION, GRNN_VARIATION = 0.1, 1e-4, 1e-3


class Work(NamedTuple):
    """What is evaluated.

    Attributes:
      network: in `kljax.models.NETWORKS`.
      victims: N, each with weights of its own.
      steps: T local steps of one image each; 1 is a gradient.
      repeats: evaluations per victim and round.
      chunks, forms: of ours: victims at a time and forms of convolution, of which the
        fastest pair is taken.
    """

    network: str
    victims: int
    steps: int = 1
    repeats: int = 1
    chunks: tuple[int, ...] = (1, 2, 4)
    forms: tuple[str, ...] = ("matmul",)


GRNN = Work("lenet", victims=16, repeats=4)
WORK = {
    "ig-resnet20": Work(
        "resnet20", victims=16, repeats=3, forms=("matmul", "bilinear")
    ),
    "ig-convnet64": Work(
        "convnet64", victims=8, chunks=(1, 2), forms=("matmul", "winograd")
    ),
    "fedavg-inversion": Work("lenet", victims=64, steps=5, repeats=4, chunks=(4, 8)),
}
# Only many victims at once keep a GPU busy.
ON_GPU = {
    "ig-resnet20": {"victims": 64, "repeats": 1, "chunks": (64,)},
    "ig-convnet64": {"victims": 32, "chunks": (32,)},
    "fedavg-inversion": {"victims": 128, "repeats": 1, "chunks": (64, 128)},
    "grnn-lenet": {"victims": 64, "chunks": (64,)},
}


def work_of(name):
    """What suits the backend."""
    work = GRNN if name == "grnn-lenet" else WORK[name]
    return work._replace(**ON_GPU[name]) if on_gpu() else work


class Problem:
    """The victims, once for everybody: real images, own weights, common starts."""

    def __init__(self, work, convolution="auto"):
        network = NETWORKS[work.network]
        self.work, self.classifier = work, network.classifier
        self.model = from_nnx(
            lambda rngs: network.factory(CLASSES, image_shape=SHAPE, rngs=rngs),
            convolution=convolution,
        )
        digits, count = data.load("digits"), work.victims
        chosen = data.select(digits, count * work.steps, seed=0)
        images, labels = digits.fetch(chosen)
        self.images = images.reshape(count, work.steps, *SHAPE)
        self.labels = labels.reshape(count, work.steps)
        generator = np.random.default_rng(0)
        shapes = jax.eval_shape(self.model.init, jax.random.key(0))
        self.params, self.stats = (
            {
                name: drawn(generator, name, (count, *x.shape))
                for name, x in tree.items()
            }
            for tree in shapes
        )
        draw = generator.standard_normal(self.images.shape)
        self.starts = (0.5 + 0.1 * draw).astype(np.float32)

    def setting(self, labels="given"):
        """The undefended setting of an attack; norms in evaluation mode."""
        upload = "gradient" if self.work.steps == 1 else "update"
        threat = least_knowledge(
            Strategy(secret="unit", labels=labels),
            examples=self.work.steps,
            upload=upload,
            victim_norm="eval",
            attacker_norm="eval",
        )
        protocol = None
        if upload == "update":
            protocol = Protocol(optax.sgd(RATE), self.work.steps, 1, RATE)
        none = defences.none()
        task = Task(
            self.model,
            losses.cross_entropy,
            images_of(SHAPE),
            classes_of(CLASSES),
            self.classifier,
        )
        assumed = AssumedDefence(none.gates, none.simulate)
        return Setting(task, threat, assumed, protocol)

    def simulation(self, setting=None):
        """What kljax's attacks replay."""
        setting = setting or self.setting()
        return replay(setting, setting.defence.gates)

    def view(self, params, stats, observed, labels):
        targets = jax.nn.one_hot(labels, CLASSES)
        return View(Public(params), stats, observed, None, targets, None, None, None)

    def objective(self):
        """``(params, stats, observed, labels, images) -> []`` of one victim."""
        simulation, distance = self.simulation(), cosine()
        prior = total_variation(VARIATION, relative=False)

        def objective(params, stats, observed, labels, images):
            view = self.view(params, stats, observed, labels)
            candidate = Candidate(images, view.targets, Private())
            value = distance(*simulation(view, candidate))
            return value + prior(view, candidate, jnp.zeros(()))

        return objective

    def evaluation(self):
        """``(params, stats, observed, labels, images) -> (value, image gradient)``."""
        return jax.value_and_grad(self.objective(), argnums=4)

    def observe(self):
        """Uploads of the true images, as the candidate's own replay."""
        simulation = self.simulation()

        def upload(params, stats, labels, images):
            nothing = Public(jax.tree.map(jnp.zeros_like, params))
            view = self.view(params, stats, nothing, labels)
            candidate = Candidate(images, view.targets, Private())
            return simulation(view, candidate)[0]

        run = map_victims(upload, Layout("sharded", 1))
        return run(self.params, self.stats, self.labels, self.images)[0]

    def in_torch(self):
        """The same, as `InversionPeer.load` wants it."""
        steps = (len(self.images), self.work.steps, 1)
        return {
            "images": self.images.reshape(*steps, *SHAPE),
            "starts": self.starts.reshape(*steps, *SHAPE),
            "labels": self.labels.reshape(steps),
            **self.params,
            **self.stats,
        }


def drawn(generator, name, shape):
    """Draws a parameter [N, ...] nearly as PyTorch does; statistics are plain."""
    kind = name.rpartition("/")[2]
    if kind in ("scale", "var", "mean"):
        return np.full(shape, kind != "mean", np.float32)
    limit = np.prod(shape[1:-1]) ** -0.5 if kind == "kernel" else 0.05
    return generator.uniform(-limit, limit, shape).astype(np.float32)


def repeated(evaluate, repeats):
    """Makes evaluations of one victim: ``(..., start) -> (value there, last images)``.

    Args:
      evaluate: as `Problem.evaluation`.
      repeats: how many.
    """

    def one(params, stats, observed, labels, start):
        def step(images, _):
            value, grads = evaluate(params, stats, observed, labels, images)
            # A move, so that no evaluation can be left out.
            return images - 1e-3 * grads, value

        images, values = jax.lax.scan(step, start, length=repeats)
        # The images, too: a loop of one turn is unrolled, and a gradient that nobody
        # reads is then not computed.
        return values[0], images

    return one


def runner(one, given, layout):
    """Makes ``() -> (seconds, values at the starts)``; says how long it compiled.

    Args:
      one: program of one victim, whose first result is the value there.
      given: what it takes, with a leading axis of victims.
      layout: of the victims.

    On a GPU their input is there before, and most results stay there.
    """
    if on_gpu():
        run, compile_s = resident(one, given, layout)

        def timed_there():
            seconds, results = run()
            return seconds, np.concatenate([values for values, _ in results])

        return timed_there, compile_s
    run = map_victims(one, layout)
    _, timing = run(*given)

    def timed():
        (values, _), timing = run(*given)
        return timing.run_s, np.asarray(values)

    return timed, timing.compile_s


def spread_layouts(chunks):
    """Lists layouts over all devices: in chunks, on CPUs one after another as well."""
    looped = () if on_gpu() else (Layout("sharded_loop", chunks[-1]),)
    return *(Layout("sharded", n) for n in chunks), *looped


def fastest_own(programs, given, chunks):
    """Finds our fastest layout and program, by the better of two rounds each.

    Args:
      programs: of one victim, by form of convolution.
      given: what they take.
      chunks: to try, see `spread_layouts`.

    Returns:
      Form, layout, and what `runner` gives for them.
    """
    found = {}
    for form, one in programs.items():
        for layout in spread_layouts(chunks):
            timed, compile_s = runner(one, given, layout)
            best = min(timed()[0] for _ in range(2))
            found[best] = form, layout, timed, compile_s
    return found[min(found)]


def by_form(work, forms):
    """Makes the problem, its program in each form of convolution, and their input."""
    problems = {form: Problem(work, form) for form in forms}
    programs = {
        form: repeated(problem.evaluation(), work.repeats)
        for form, problem in problems.items()
    }
    problem = problems["matmul"]
    observed = problem.observe()
    given = problem.params, problem.stats, observed, problem.labels, problem.starts
    return problems, programs, given


def compare(name, options, work=None):
    """Evaluations per second, ours and the peers', in turns."""
    work = work or work_of(name)
    problems, programs, given = by_form(work, work.forms)
    form, layout, timed, compile_s = fastest_own(programs, given, work.chunks)
    problem = problems[form]
    first = jax.tree.map(lambda x: x[0], given)
    flops = product_flops(problem.evaluation(), *first)
    settings = {
        "victims": work.victims,
        "local_steps": work.steps,
        "layout": str(layout),
        "convolution": form,
        "compile_s": compile_s,
    }
    if not set(PEERS) & set(options.peers):  # who else could say that it is right?
        slow = Problem(work._replace(victims=1), "lax").evaluation()
        settings["difference_to_slow_form"] = slow_difference(
            problem.evaluation(), slow, given, layout
        )

    def load(peer):
        peer.load(work.network, problem.in_torch(), RATE, VARIATION)

    return [race(name, options, work, timed, load, settings, flops, "evaluations/s")]


def race(name, options, work, timed, load, settings, flops, unit):
    """Lets ours and the peers run in turns.

    Args:
      name, unit: of the entry.
      options: of the command line.
      work: says how many victims and repeats.
      timed: ours: ``() -> (seconds, values at the starts [N])``.
      load: ``InversionPeer -> None``, sends it the same victims.
      settings: to write down.
      flops: of one evaluation, in products.
    """
    total, values = work.victims * work.repeats, {}

    def ours():
        seconds, values["ours"] = timed()
        return total / seconds

    with InversionPeer(options.torch_python, gpu=on_gpu()) as peer:
        names = [n for n in PEERS if n in options.peers]
        if names:
            load(peer)
        rates, chosen, theirs = beside_peers(
            options.rounds,
            {"ours": ours},
            [n + end for n in names for end in ("", "-2-processes")],
            functools.partial(fastest, peer),
            lambda setting: peer.evaluations(setting, work.repeats),
        )
    peak, mine = matmul_peak(), rates.pop("ours")
    settings |= {
        "peers": as_fields(chosen),
        "flops_per_evaluation": flops,
        "matmul_peak_gflops": peak / 1e9,
        # Of the objective at the starts.
        "largest_difference_to_peer": largest_differences(theirs, values["ours"]),
    }
    share = statistics.median(mine) * flops / peak
    return entry(name, mine, rates, unit, settings, share)


class Generators:
    """GRNN on the victims of a `Problem`: a generator each, and noise of its own.

    Attributes:
      work: what is run.
      given: arguments of `objective`, with a leading axis [N]: weights of generators,
        parameters, uploads and noise.
      optimiser: of the weights.
    """

    def __init__(self, work=GRNN, convolution="auto"):
        self.work, self._problem = work, Problem(work, convolution)
        setting = self._problem.setting(labels="joint")
        parts = generated_images(setting), generated_labels(setting)
        rngs = jax.random.split(jax.random.key(1), (work.victims, 2))

        def begin(rng):
            return tuple(
                part.start(r, None) for part, r in zip(parts, rng, strict=True)
            )

        (images, noise), (labels, _) = jax.device_get(jax.jit(jax.vmap(begin))(rngs))
        observed = self._problem.observe()
        self.given = (images, labels, ()), self._problem.params, observed, noise
        self.optimiser = rmsprop()
        self._simulation, self._distance = self._problem.simulation(setting), l2_norm()
        self._prior = squared_variation(GRNN_VARIATION)

    def objective(self, free, params, observed, noise):
        """Computes the loss [] of one victim at the weights `free`."""
        weights, labels, _ = free
        view = self._problem.view(params, {}, observed, jnp.zeros(1, jnp.int32))
        targets = label_branch(labels, noise)
        candidate = Candidate(image_branch(weights, noise), targets, Private())
        value = self._distance(*self._simulation(view, candidate))
        return value + self._prior(view, candidate, jnp.zeros(()))

    def step(self, free, state, params, observed, noise):
        """Evaluates and moves the weights of one victim: free, state, value."""
        value, grads = jax.value_and_grad(self.objective)(free, params, observed, noise)
        return *self.optimiser.step(free, state, value, grads), value

    def in_torch(self):
        """The same, as `InversionPeer.load_generators` wants it."""
        (images, labels, _), params, _, noise = self.given
        named = {f"first/{n}": v for n, v in images["first"].items()}
        named |= {f"label/{n}": v for n, v in labels.items()}
        for i, block in enumerate(images["blocks"]):
            named |= {f"blocks/{i}/{n}": v for n, v in block.items()}
        arrays = {"images": self._problem.images, "labels": self._problem.labels}
        arrays |= {f"generator/{n}": v for n, v in named.items()}
        return arrays | {"noise": noise} | params


def grnn_lenet(options, work=None):
    """Steps of GRNN per second: a generator each for victims with own weights."""
    work = work or work_of("grnn-lenet")
    problem = Generators(work)

    def one(free, *known):
        def step(carry, _):
            free, state, value = problem.step(*carry, *known)
            return (free, state), value

        start = free, problem.optimiser.init(free)
        (free, _), values = jax.lax.scan(step, start, length=work.repeats)
        return values[0], free

    _, layout, timed, compile_s = fastest_own(
        {"matmul": one}, problem.given, work.chunks
    )
    first = jax.tree.map(lambda x: x[0], problem.given)
    flops = product_flops(jax.value_and_grad(problem.objective), *first)
    settings = {
        "victims": work.victims,
        "layout": str(layout),
        "compile_s": compile_s,
    }
    if not set(PEERS) & set(options.peers):
        slow = Generators(work._replace(victims=1), "lax").objective
        settings["difference_to_slow_form"] = slow_difference(
            *(jax.value_and_grad(own) for own in (problem.objective, slow)),
            problem.given,
            layout,
        )

    def load(peer):
        peer.load_generators(problem.in_torch(), GRNN_VARIATION)

    unit = "steps/s"
    return [race("grnn-lenet", options, work, timed, load, settings, flops, unit)]


def layouts(name, options, work=None):
    """Chunks and forms of convolution: what the defaults are chosen from."""
    work = work or work_of(name)
    _, programs, given = by_form(work, (*work.forms, "lax"))
    contestants, compile_s = {}, {}
    for layout in (*spread_layouts(work.chunks), Layout("loop")):
        for form, one in programs.items():
            label = f"{layout_title(layout)}, {form}"
            timed, compile_s[label] = runner(one, given, layout)
            contestants[label] = lambda timed=timed: (
                work.victims * work.repeats / timed()[0]
            )
    settings = {"victims": work.victims, "compile_s": compile_s}
    label, unit = f"layouts-{name}", "evaluations/s"
    # The slow ones can take a minute a round: once is enough to rule them out.
    return [ranking(label, options.rounds, contestants, unit, settings, keep=0.25)]


# Those that have peers.
RACES = {name: functools.partial(compare, name) for name in WORK}
RACES["grnn-lenet"] = grnn_lenet
NAMES = RACES | {f"layouts-{name}": functools.partial(layouts, name) for name in WORK}
