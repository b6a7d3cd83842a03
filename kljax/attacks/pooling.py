"""Pooling: several uploads of one client, behind one lock.

A private key is the same over all rounds, and lock weights drift slowly. U gradients of
different examples, of one round or of several, with the parameters that each was taken
at, then have one lock in common: U times the equations, and the gates only once among
the unknowns.
"""

import jax
import jax.numpy as jnp

from kljax.attacks.attack import (
    Candidate,
    Objective,
    Prior,
    Simulation,
    Unknown,
    Unknowns,
)
from kljax.core.types import Array, PyTree, Rng
from kljax.threat import View


def pooled(
    unknowns: Unknowns,
    simulation: Simulation,
    objective: Objective,
    prior: Prior,
    *,
    uploads: int,
) -> tuple[Unknowns, Simulation, Objective, Prior]:
    """Turns an attack on one upload into an attack on several under one lock.

    Args:
      unknowns: of one upload with B examples.
      simulation: of one upload.
      objective: of one upload.
      prior: of one upload.
      uploads: U.

    Returns:
      The same four for views with a leading axis [U] on every array. Candidates have
      the images [U x B, H, W, C] and targets [U x B, Kc] of all uploads, one upload
      after the other, and one secret, started from what the first upload shows.
      Objective and prior are means over uploads.

    Raises:
      ValueError: if `uploads` is below 1.
    """
    if uploads < 1:
        raise ValueError(f"uploads must be at least 1, got {uploads!r}")

    def each(part: Unknown) -> Unknown:
        def start(rng: Rng, views: View):
            return jax.vmap(part.start)(jax.random.split(rng, uploads), views)

        def decode(free: PyTree, fixed: PyTree) -> PyTree:
            values = jax.vmap(part.decode, axis_size=uploads)(free, fixed)
            return jax.tree.map(_joined, values)

        def read(values: PyTree, fixed: PyTree) -> PyTree:
            found = jax.vmap(part.read)(_parted(values, uploads), fixed)
            return jax.tree.map(_joined, found)

        project = jax.vmap(part.project, axis_size=uploads)
        return Unknown(start, decode, project, read)

    def first(part: Unknown) -> Unknown:
        def start(rng: Rng, views: View):
            return part.start(rng, jax.tree.map(lambda leaf: leaf[0], views))

        return part._replace(start=start)

    def split(candidate: Candidate) -> tuple[Candidate, Candidate]:
        """Gives the candidates of all uploads, and their axes."""

        inputs, targets = _parted((candidate.inputs, candidate.targets), uploads)
        candidates = candidate._replace(inputs=inputs, targets=targets)
        return candidates, Candidate(inputs=0, targets=0, secret=None)

    def simulate(views: View, candidate: Candidate):
        candidates, axes = split(candidate)
        return jax.vmap(simulation, in_axes=(0, axes))(views, candidates)

    def distance(simulated: PyTree, observed: PyTree) -> Array:
        return jnp.mean(jax.vmap(objective)(simulated, observed))

    def believe(views: View, candidate: Candidate, progress: Array) -> Array:
        candidates, axes = split(candidate)
        penalties = jax.vmap(prior, in_axes=(0, axes, None))(
            views, candidates, progress
        )
        return jnp.mean(penalties)

    inputs, targets, secret = unknowns
    parts = Unknowns(each(inputs), each(targets), first(secret))
    return parts, simulate, distance, believe


def _parted(values: PyTree, uploads: int) -> PyTree:
    return jax.tree.map(lambda x: x.reshape(uploads, -1, *x.shape[1:]), values)


def _joined(leaf: Array) -> Array:
    return leaf.reshape(-1, *leaf.shape[2:])
