"""Entries of the speed table about deeper networks and whole updates.

Peers (`timing.peers.inversions`), each at the best of its settings on this machine,
which is found first:
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

from kljax import data
from kljax.attacks import Candidate, Protocol, cosine, replay, total_variation
from kljax.core.types import Private, Public
from kljax.models import NETWORKS, from_nnx
from kljax.parallel import Layout, map_victims
from kljax.threat import Strategy, least_knowledge

from ..device import on_gpu
from ..entry import Entry
from ..own_layouts import fastest_own
from ..peak import matmul_peak, product_flops
from ..peers.inversions import PEERS, InversionPeer, fastest
from ..slow_form import slow_difference
from ..table import as_fields, line
from ..turns import beside_peers, largest_differences
from ..victims import CLASSES, SHAPE, undefended, view_of

RATE, VARIATION = 0.1, 1e-4


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
    "ig-resnet20": WORK["ig-resnet20"]._replace(victims=64, repeats=1, chunks=(64,)),
    "ig-convnet64": WORK["ig-convnet64"]._replace(victims=32, chunks=(32,)),
    "fedavg-inversion": WORK["fedavg-inversion"]._replace(
        victims=128, repeats=1, chunks=(64, 128)
    ),
}


def shrunken(work):
    """Makes it tiny: two chunks of two of a peer's, and no network deep to compile."""
    return work._replace(network="lenet", victims=4, repeats=1, chunks=(1,))


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
        return undefended(
            self.model, classifier=self.classifier, threat=threat, protocol=protocol
        )

    def simulation(self, setting=None):
        """What kljax's attacks replay."""
        setting = setting or self.setting()
        return replay(setting, setting.defence.gates)

    def view(self, params, stats, observed, labels):
        """What the server sees of one victim."""
        return view_of(params, observed, jax.nn.one_hot(labels, CLASSES), stats)

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


def compare(name, options, work):
    """Evaluations per second, ours and the peers', in turns."""
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

    def ours():
        seconds, values = timed()
        return work.victims * work.repeats / seconds, values

    with InversionPeer(options.torch_python, gpu=on_gpu()) as peer:
        names = [n for n in PEERS if n in options.peers]
        if names:
            load(peer)
        rates, chosen, values = beside_peers(
            options.rounds,
            {"ours": ours},
            [n + end for n in names for end in ("", "-2-processes")],
            functools.partial(fastest, peer),
            lambda setting: peer.evaluations(setting, work.repeats),
        )
    peak, mine = matmul_peak(options.tiny), rates.pop("ours")
    settings |= {
        "peers": as_fields(chosen),
        "flops_per_evaluation": flops,
        "matmul_peak_gflops": peak / 1e9,
        # Of the objective at the starts.
        "largest_difference_to_peer": largest_differences(values),
    }
    share = statistics.median(mine) * flops / peak
    return line(name, mine, rates, unit, settings, share)


SENTENCES = {
    "ig-resnet20": "values and image gradients of the cosine distance and the total "
    "variation, ResNet-20 at 32x32, 16 victims with own weights, norms in evaluation "
    "mode; in evaluations/s",
    "ig-convnet64": "the same of the 2.9 M ConvNet of Inverting Gradients, 8 victims",
    "fedavg-inversion": "the cosine distance of updates of 5 local steps, LeNet, 64 "
    "victims; in evaluations/s",
}
ENTRIES = tuple(
    Entry(
        name,
        sentence,
        functools.partial(compare, name),
        WORK[name],
        shrunken(WORK[name]),
        ON_GPU[name],
        PEERS,
    )
    for name, sentence in SENTENCES.items()
)
