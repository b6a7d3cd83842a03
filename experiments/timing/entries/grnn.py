"""The entry of the speed table about GRNN: a generator for each victim.

Peers are those of `inversions`.
"""

import jax
import jax.numpy as jnp

from kljax.attacks import Candidate
from kljax.attacks.generators import (
    generated_images,
    generated_labels,
    image_branch,
    label_branch,
)
from kljax.attacks.objectives import l2_norm
from kljax.attacks.optimisers import rmsprop
from kljax.attacks.priors import squared_variation
from kljax.core.types import Private

from ..entry import Entry
from ..own_layouts import fastest_own
from ..peak import product_flops
from ..peers.inversions import PEERS
from ..slow_form import slow_difference
from .inversions import Problem, Work, race, shrunken

VARIATION = 1e-3
WORK = Work("lenet", victims=16, repeats=4)


class Generators:
    """GRNN on the victims of a `Problem`: a generator each, and noise of its own.

    Attributes:
      work: what is run.
      given: arguments of `objective`, with a leading axis [N]: weights of generators,
        parameters, uploads and noise.
      optimiser: of the weights.
    """

    def __init__(self, work=WORK, convolution="auto"):
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
        self._prior = squared_variation(VARIATION)

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


def compare(options, work):
    """Steps of GRNN per second: a generator each for victims with own weights."""
    problem = Generators(work)

    def one(free, *known):
        def step(carry, _):
            free, state, value = problem.step(*carry, *known)
            return (free, state), value

        start = free, problem.optimiser.init(free)
        (free, _), values = jax.lax.scan(step, start, length=work.repeats)
        return values[0], free

    form, layout, timed, compile_s = fastest_own(
        {"auto": one}, problem.given, work.chunks
    )
    first = jax.tree.map(lambda x: x[0], problem.given)
    flops = product_flops(jax.value_and_grad(problem.objective), *first)
    settings = {
        "victims": work.victims,
        "convolution": form,
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
        peer.load_generators(problem.in_torch(), VARIATION)

    unit = "steps/s"
    return [race("grnn-lenet", options, work, timed, load, settings, flops, unit)]


ENTRIES = (
    Entry(
        "grnn-lenet",
        "GRNN: steps of RMSprop on a generator per victim, LeNet; in steps/s",
        compare,
        WORK,
        shrunken(WORK),
        WORK._replace(victims=64, chunks=(64,)),
        PEERS,
    ),
)
