"""Asks what a gradient determines, before asking what an attack finds.

    JAX_ENABLE_X64=1 python experiments/identifiability.py [--victims 2] [--size 16]
        [--lock-init 0] [--steps 300] [--near 0.01 0.1 0.3 inf]
        [--tables spectrum near]

What: LeNet on digits, one example per gradient, float64. Per arm the Jacobian of the
upload with respect to what the attacker does not know, at the truth: the pixels, and
behind a lock whose private key it lacks its gates (scales and shifts; no scales of dead
channels, which it sees). Singular values say what is determined: rank is what rounding
leaves, in the arithmetic of the calculation (float64) and in that of an upload
(float32); the condition is the largest singular value over the smallest within float64
rank. Directions: |J d| / |d| over the largest singular value, for d = the image
(contrast) and d = one grey (brightness). Columns are scaled so that gates are measured
in units of their mean.

Then the positive control: the attack on the same victims, started at the truth plus
noise of NEAR times the spread of the image, and gates times exp(NEAR x normal); inf is
the start from nothing that attackers have. Where the first returns and the last does
not, the search is what fails; where the rank is short, the defence (or the norm) has
taken something away.
Results: experiments/identifiability.md.
"""

import argparse
import functools
import os

os.environ.setdefault("JAX_ENABLE_X64", "1")

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from kljax import LeakConfig, metrics
from kljax.attacks import (
    Candidate,
    Unknown,
    Unknowns,
    descend,
    lbfgs,
    live_channels,
    replay,
)
from kljax.attacks.objectives import balanced_l2
from kljax.attacks.secrets import secret_of
from kljax.core.targets import likeliest
from kljax.core.types import Gate
from kljax.studies.builder.drawn_client import draw_rng
from kljax.studies.builder.study import build_study
from kljax.threat import observe

ARMS = (
    "none",
    "bn-control",
    "plaintext-gates-as-lock",
    "keylock/known",
    "keylock/regress_gates",
)

SPECTRUM = (
    "arm",
    "victim",
    "live",
    "unknowns",
    "equations",
    "rank",
    "float32 rank",
    "largest",
    "smallest",
    "condition",
    "contrast",
    "brightness",
)
NEAR = (
    "arm",
    "victim",
    "near",
    "loss at start",
    "loss at end",
    "image error at start",
    "at end",
    "affine",
    "SSIM",
    "SSIM affine",
    "gate error at start",
    "gate error at end",
)


def main():
    """Prints both tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--victims", type=int, default=2)
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--lock-init", type=float, default=0.0)
    parser.add_argument("--arms", nargs="+", default=ARMS)
    parser.add_argument(
        "--near", type=float, nargs="*", default=(0.01, 0.1, 0.3, np.inf)
    )
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--tables",
        nargs="+",
        choices=("spectrum", "near"),
        default=("spectrum", "near"),
    )
    options = parser.parse_args()
    cases = {}
    for arm in options.arms:
        config = LeakConfig(
            arms=(arm,),
            victims=options.victims,
            image_size=options.size,
            lock_init=options.lock_init,
            seed=options.seed,
        )
        cases[arm] = Case(config)
    if "spectrum" in options.tables:
        print("| " + " | ".join(SPECTRUM) + " |\n" + "|---" * len(SPECTRUM) + "|")
        for arm, case in cases.items():
            for victim in range(options.victims):
                row = spectrum(case, victim)
                print(f"| {arm} | {victim} | {row} |", flush=True)
    if "near" in options.tables:
        print("\n| " + " | ".join(NEAR) + " |\n" + "|---" * len(NEAR) + "|")
        for arm, case in cases.items():
            for victim in range(options.victims):
                for near in options.near:
                    row = nearby(case, victim, near, options.steps)
                    print(f"| {arm} | {victim} | {near:g} | {row} |", flush=True)


class Case:
    """One arm of a study, in float64: its upload as a function of the unknowns."""

    def __init__(self, config: LeakConfig):
        """Prepares the arm."""
        study = build_study(config)
        (job,) = study.attacks
        config = study.config
        self.config, self.job = config, job
        self.setting = job.setting
        self.secret = secret_of(self.setting)
        network, held = job.client.draws
        self.updates = []
        source, _, images, labels = job.inputs
        defence = job.arm.defence

        @jax.jit
        def step(source, images, labels):
            drawn = network(source)
            mine = held(source, drawn)
            drawn, mine = _double((drawn, mine))
            return job.client.upload(
                draw_rng(source, "step"), defence, drawn, mine, images, labels
            )

        for v in range(config.victims):
            mine = jax.tree.map(lambda leaf, v=v: leaf[v], source)
            self.updates.append(step(mine, _double(images[v]), labels[v]))
        self.regressed = config.arms[0].endswith("regress_gates")

    def truth(self, victim: int):
        """Gives the view, the true candidate, and the true gates ({} without any)."""
        update = self.updates[victim]
        view = observe(self.job.setting.threat, update)
        gates = self.job.arm.defence.gates(update.public.defence, update.private)
        lock = gates if self.regressed else update.private
        candidate = Candidate(update.inputs, update.targets, lock)
        return view, candidate, gates

    def simulation(self):
        """Makes ``(view, candidate) -> (simulated, observed)``."""
        gates = self.secret.gates if self.regressed else self.setting.defence.gates
        return replay(self.setting, gates)

    @functools.cache  # noqa: B019 - as many as there are cases
    def attack(self, steps: int):
        """Makes ``(view, images, targets, start of the lock, its value) ->``.

        It gives the loss at the start, and the reconstruction.
        """
        simulation, objective = self.simulation(), balanced_l2()
        regressed = self.secret.unknown.decode

        def run(view, images, targets, lock, gates):
            parts = Unknowns(
                Unknown(lambda rng, view: (images, ()), lambda free, fixed: free),
                Unknown(
                    lambda rng, view: ((), targets),
                    lambda free, fixed: fixed,
                    read=lambda targets, fixed: likeliest(targets),
                ),
                Unknown(
                    lambda rng, view: lock,
                    regressed if self.regressed else lambda free, fixed: fixed,
                ),
            )
            search = descend(parts, simulation, objective, lbfgs(), steps=steps)
            first = objective(*simulation(view, Candidate(images, targets, gates)))
            return first, search(jax.random.key(0), view)

        return jax.jit(run)


def _double(tree):
    def cast(leaf):
        floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        return jnp.asarray(leaf, jnp.float64) if floating else leaf

    return jax.tree.map(cast, tree)


def spectrum(case: Case, victim: int) -> str:
    """Computes the cells of one row of the first table."""
    view, truth, gates = case.truth(victim)
    simulation = case.simulation()
    live = {}
    if case.regressed:
        live = live_channels(case.setting, view)
        units = {s: float(jnp.mean(g.scale[live[s]])) for s, g in gates.items()}

    def vector(unknown):
        images, scales, shifts = unknown
        lock = truth.secret
        if case.regressed:
            lock = {
                site: Gate(
                    gate.scale.at[live[site]].add(scales[site] * units[site]),
                    gate.shift + shifts[site] * units[site],
                )
                for site, gate in gates.items()
            }
        simulated, _ = simulation(view, truth._replace(inputs=images, secret=lock))
        return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(simulated)])

    zeros = ({}, {})
    if case.regressed:
        zeros = (
            {site: jnp.zeros(int(live[site].sum())) for site in gates},
            {site: jnp.zeros(len(live[site])) for site in gates},
        )
    start = (truth.inputs, *zeros)
    flat, unravel = ravel_pytree(start)
    assert flat.dtype == jnp.float64
    along = jax.jit(
        jax.vmap(lambda d: jax.jvp(lambda z: vector(unravel(z)), (flat,), (d,))[1])
    )
    basis = np.eye(flat.size)
    rows = [along(part) for part in np.array_split(basis, -(-flat.size // 64))]
    jacobian = np.concatenate([np.asarray(part) for part in rows])  # transposed
    # R has the singular values of the transposed Jacobian's QR: a smaller SVD.
    _, triangle = np.linalg.qr(jacobian.T, mode="reduced")
    values = np.linalg.svd(triangle, compute_uv=False)
    largest = values[0]

    def rank(precision):
        return int(np.sum(values > largest * max(jacobian.shape) * precision))

    whole = rank(np.finfo(np.float64).eps)
    pixels = truth.inputs.size

    def visible(direction):
        padded = np.zeros(flat.size)
        padded[:pixels] = np.ravel(direction)
        return np.linalg.norm(padded @ jacobian) / np.linalg.norm(padded) / largest

    smallest = values[whole - 1]
    alive = sum(int(jnp.sum(g.scale != 0)) for g in gates.values()) if gates else "-"
    return " | ".join(
        (
            str(alive),
            str(flat.size),
            str(jacobian.shape[1]),
            str(whole),
            str(rank(np.finfo(np.float32).eps)),
            f"{largest:.1e}",
            f"{values[-1]:.1e}",
            f"{largest / smallest:.1e}",
            f"{visible(truth.inputs):.0e}",
            f"{visible(np.ones(pixels)):.0e}",
        )
    )


def nearby(case: Case, victim: int, near: float, steps: int) -> str:
    """Starts the attack near the truth; gives the cells of the second table."""
    view, truth, gates = case.truth(victim)
    far = np.isinf(near)
    rng = jax.random.key(1000 * victim + (999_983 if far else round(1000 * near)))
    rng_images, rng_lock, rng_gates = jax.random.split(rng, 3)
    noise = jax.random.normal(rng_images, truth.inputs.shape)
    start = truth.inputs + near * jnp.std(truth.inputs) * noise
    if far:
        start = 0.5 + 0.1 * noise

    lock, start_gates = ((), truth.secret), None
    if case.regressed:
        free, known = case.secret.unknown.start(rng_lock, view)
        for i, (site, gate) in enumerate(sorted(gates.items()) if not far else ()):
            live, unit, _ = known[site]
            rng_site = jax.random.fold_in(rng_gates, i)
            normal = jax.random.normal(rng_site, (2, live.size))
            scale = jnp.where(live, jnp.log(gate.scale / unit), 0.0) + near * normal[0]
            shift = (gate.shift * jnp.exp(near * normal[1])) / unit
            free[site] = Gate(scale, shift)
        start_gates = case.secret.unknown.decode(free, known)
        lock = (free, known)
    first, found = case.attack(steps)(
        view, start, truth.targets, lock, start_gates or truth.secret
    )

    def image_error(images):
        return float(
            jnp.linalg.norm(images - truth.inputs) / jnp.linalg.norm(truth.inputs)
        )

    def gate_error(guess):
        pairs = [
            (jnp.concatenate(guess[site]), jnp.concatenate(gates[site]))
            for site in gates
        ]
        return max(float(jnp.linalg.norm(g - t) / jnp.linalg.norm(t)) for g, t in pairs)

    affine = metrics.affine_fit(found.inputs[0], truth.inputs[0])
    scores = metrics.score(found.inputs[0], truth.inputs[0])
    errors = ("-", "-")
    if case.regressed:
        errors = tuple(
            f"{gate_error(g):.1e}" for g in (start_gates, found.info["secret"])
        )
    return " | ".join(
        (
            f"{first:.1e}",
            f"{found.loss:.1e}",
            f"{image_error(start):.1e}",
            f"{image_error(found.inputs):.1e}",
            f"{image_error(affine[None]):.1e}",
            f"{scores['ssim']:.3f}",
            f"{scores['ssim_affine_oracle']:.3f}",
            *errors,
        )
    )


if __name__ == "__main__":
    main()
