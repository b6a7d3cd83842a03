"""Entries of the speed table about a generator's latents and features.

ggl-cma: candidates of one generation of CMA-ES; the gradient that each one's image
gives, and GGL's distance to the observed one. What asks for candidates and is told
their values is left out on all sides. gifd-stage: steps of GIFD on the features behind
the generator's first stage, with its priors, rates and projection. LeNet at 32x32,
weights U(-.5, .5), the generator of digits, every victim its own network. Peers
(`timing.peers.latents`) are found at the best of their settings first.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kljax.attacks import Attacker, Candidate, Unknown, Unknowns, replay
from kljax.attacks.drivers import descend_in_stages
from kljax.attacks.latents import Code, feature_stage, resized
from kljax.attacks.objectives import cosine, mean_squared_l2
from kljax.attacks.optimisers import ramped_adam
from kljax.attacks.priors import added, image_norm, total_variation
from kljax.core.inputs import images_of
from kljax.core.types import Private, Public
from kljax.models.decoders import FOLDER, read_decoder
from kljax.parallel import fastest_layout, map_victims

from ..device import on_gpu
from ..entry import Entry
from ..peers.latents import PEERS, LatentPeer, settings
from ..peers.processes import fastest
from ..table import as_fields, line
from ..torch_layouts import lenet_in_torch
from ..turns import beside_peers, largest_differences, mapped_calls
from ..victims import CLASSES, lenet, undefended, view_of

RADIUS, RATE, VARIATION, SIZE = 0.1, 0.1, 1e-4, 1e-6  # those of the preset


class Work(NamedTuple):
    """What is done: P candidates, or steps, of each of N victims."""

    victims: int = 8
    candidates: int = 50
    steps: int = 50
    side: int = 32


class Problem:
    """The victims, once for everybody: images that the generator made."""

    def __init__(self, work):
        self.shape, self.work = (work.side, work.side, 3), work
        self.model = lenet(self.shape)
        rngs = jax.random.split(jax.random.key(0), work.victims)
        init = jax.jit(jax.vmap(lambda rng: self.model.init(rng)[0]))
        self.params = jax.device_get(init(rngs))
        self.generator = read_decoder(FOLDER / "digits.npz")
        draw = np.random.default_rng(0)

        def normal(*shape):
            return draw.standard_normal((*shape, self.generator.latents), np.float32)

        labels = draw.integers(CLASSES, size=work.victims)
        self.targets = np.eye(CLASSES, dtype=np.float32)[labels]
        self.images = np.asarray(self.made(normal(work.victims), self.targets))
        self.latents = normal(work.victims)
        self.candidates = normal(work.victims, work.candidates)
        self.setting = undefended(
            self.model,
            images_of(self.shape),
            attacker=Attacker(generator=self.generator),
        )
        self.simulation = replay(self.setting, self.setting.defence.gates)

    def made(self, latents, targets):
        """Makes images [B, S, S, 3]."""
        made = self.generator.decode(self.generator.weights, latents, targets)
        return resized(made, self.shape)

    def view(self, params, image, target):
        """Observes the gradient of one image."""
        nothing = Public(jax.tree.map(jnp.zeros_like, params))
        before = view_of(params, nothing, target[None])
        candidate = Candidate(image[None], target[None], Private())
        return view_of(params, self.simulation(before, candidate)[0], target[None])

    def judge(self, params, image, target, candidates):
        """Judges the candidates [P, n] of one victim: [P]."""
        view, distance = self.view(params, image, target), mean_squared_l2()

        def judged(latents):
            made = self.made(latents[None], target[None])
            candidate = Candidate(made, target[None], Private())
            return distance(*self.simulation(view, candidate))

        return jax.vmap(judged)(candidates)

    def descend(self, params, image, target, latents):
        """Makes the steps of one victim: the best distance [1]."""

        def fixed(value):
            return Unknown(lambda rng, view: ((), value), lambda free, fixed: fixed)

        code = Code(latents[None], None)
        steps = self.work.steps
        strike = descend_in_stages(
            Unknowns(
                Unknown(lambda rng, view: (code, (target[None], ())), None),
                fixed(target[None]),
                fixed(Private()),
            ),
            [feature_stage(self.setting, 1, RADIUS)],
            self.simulation,
            cosine(),
            [ramped_adam(RATE, steps=steps, fall=0.75)],
            prior=added(
                total_variation(VARIATION, relative=False),
                image_norm(SIZE, per_pixel=True),
            ),
            steps=(steps,),
        )
        found = strike(jax.random.key(0), self.view(params, image, target))
        return found.loss[None]

    def given(self, name):
        """Gives what our function takes, with a leading axis of victims."""
        last = self.candidates if name == "ggl-cma" else self.latents
        return self.params, self.images, self.targets, last

    def in_torch(self):
        """The same, as `LatentPeer.load` wants it."""
        arrays = {
            "targets": self.targets,
            "images": np.moveaxis(self.images, -1, 1)[:, None],
            "latents": self.latents,
            "candidates": self.candidates,
        }
        for name, leaf in self.generator.weights.items():
            arrays[f"generator/{name}"] = np.asarray(leaf)
        for name, leaf in lenet_in_torch(self.params).items():
            arrays[f"params/{name}"] = leaf
        return arrays


def compare(name, options, work):
    """Candidates, or steps, per second, ours and the peers', in turns."""
    problem = Problem(work)
    one = problem.judge if name == "ggl-cma" else problem.descend
    each = work.candidates if name == "ggl-cma" else work.steps
    total, given = work.victims * each, problem.given(name)
    layout = fastest_layout("victims")
    run = map_victims(one, layout)
    compile_s = run(*given)[1].compile_s
    fields = {"radius": RADIUS, "rate": RATE, "variation": VARIATION, "size": SIZE}
    with LatentPeer(options.torch_python, gpu=on_gpu()) as peer:

        def theirs(setting):
            if name == "ggl-cma":
                return peer.judge(setting)
            return peer.descend(setting, steps=work.steps, **fields)

        names = [n for n in PEERS if n in options.peers]
        if names:
            peer.load(problem.in_torch())

        def choose(label):
            some = settings(label, work.candidates)
            return fastest(some, lambda setting: theirs(setting)[0])

        def run_peer(setting):
            seconds, found = theirs(setting)
            return total / seconds, found

        own = {"ours": mapped_calls(run, given, total)}
        rates, chosen, values = beside_peers(
            options.rounds, own, names, choose, run_peer
        )
    settled = {
        **work._asdict(),
        "layout": str(layout),
        "compile_s": compile_s,
        "peers": as_fields(chosen),
        "largest_relative_difference_to_peer": largest_differences(
            values, relative=True
        ),
    }
    mine = rates.pop("ours")
    unit = "candidates/s" if name == "ggl-cma" else "steps/s"
    return [line(name, mine, rates, unit, settled)]


SENTENCES = {
    "ggl-cma": "candidates of CMA-ES: the image that a generator makes of each, the "
    "gradient that LeNet gives at it, GGL's distance; in candidates/s",
    "gifd-stage": "GIFD's steps on the features behind a generator's first stage, with "
    "projection; in steps/s",
}
ENTRIES = tuple(
    Entry(
        name,
        sentence,
        partial(compare, name),
        Work(),
        Work(victims=2, candidates=4, steps=3),
        peers=PEERS,
    )
    for name, sentence in SENTENCES.items()
)
