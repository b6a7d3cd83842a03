"""Pooling: several uploads of one client, attacked together.

They have something in common, which is among the unknowns only once:

- `pooled`: one lock, and different examples. A private key is the same over all rounds,
  and lock weights drift slowly. U uploads have U times the equations.
- `pool_observations`: the same examples, at weights that have moved on. Noise that a
  defence draws anew for each upload averages out. Every search does so where its view
  has `kljax.threat.Observations`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kljax.attacks.attack import (
    Candidate,
    Objective,
    Prior,
    Search,
    Simulation,
    Unknown,
    Unknowns,
)
from kljax.core.types import Array, PyTree, Rng
from kljax.threat import Observations, View

TRIMMED = 0.25  # of the losses, at either end


def _trimmed_mean(losses: Array) -> Array:
    cut = max(int(TRIMMED * len(losses)), int(len(losses) > 2))
    return jnp.mean(jnp.sort(losses)[cut : len(losses) - cut])


# losses [K] -> []. The sum is K times the mean, and would be no loss of one upload. One
# upload that fits nothing else moves the mean, and the others hardly.
POOLINGS: dict[str, Callable[[Array], Array]] = {
    "mean": jnp.mean,
    "median": jnp.median,
    "trimmed-mean": _trimmed_mean,
}


def pool_observations(search: Search, view: View) -> Search:
    """Turns a search on one upload into one on several uploads of the same examples.

    Inputs and targets start from the first upload, and priors look at it alone. What
    is looked for of a secret is one for all uploads, with what each shows of it (lock
    weights that have moved on), or one for each, which the client drew anew. The
    matching loss is that of each upload, put together by the attacker's rule
    (`POOLINGS`).

    Args:
      search: of one upload.
      view: of the first.

    Returns:
      The same search where there is nothing to pool. Otherwise candidates have secrets
      [K, ...], and simulated and observed uploads a leading axis [K].
    """
    seen = view.observations
    if seen is None:
        return search
    count = jax.tree.leaves(seen.views)[0].shape[0]
    axes = Candidate(inputs=None, targets=None, secret=0)

    def simulate(view: View, candidate: Candidate):
        del view  # the first of them
        in_axes = 0, axes
        simulation = jax.vmap(search.simulation, in_axes=in_axes, axis_size=count)
        return simulation(seen.views, candidate)

    def distance(simulated: PyTree, observed: PyTree) -> Array:
        losses = jax.vmap(search.objective)(simulated, observed)
        return POOLINGS[seen.pooling](losses)

    def believe(view: View, candidate: Candidate, progress: Array) -> Array:
        first = candidate._replace(secret=_first(candidate.secret))
        return search.prior(view, first, progress)

    secret = _pooled_secret(search.unknowns.secret, seen, count)
    unknowns = search.unknowns._replace(secret=secret)
    return Search(unknowns, simulate, distance, believe)


def _pooled_secret(part: Unknown, seen: Observations, count: int) -> Unknown:
    """Makes the secret of K uploads of that of one; the first's is reported."""
    own = seen.own_secrets
    each = 0 if own else None  # the axis of what is looked for

    def start(rng: Rng, view: View):
        if own:
            return jax.vmap(part.start)(jax.random.split(rng, count), seen.views)
        # What is guessed is guessed once; what is seen is seen of each.
        free, _ = part.start(rng, view)
        return free, jax.vmap(lambda view: part.start(rng, view)[1])(seen.views)

    def decode(free: PyTree, fixed: PyTree) -> PyTree:
        return jax.vmap(part.decode, in_axes=(each, 0), axis_size=count)(free, fixed)

    def project(free: PyTree) -> PyTree:
        return (
            jax.vmap(part.project, axis_size=count)(free) if own else part.project(free)
        )

    def read(values: PyTree, fixed: PyTree) -> PyTree:
        return part.read(_first(values), _first(fixed))

    def penalty(free: PyTree) -> Array:
        return jnp.mean(jax.vmap(part.penalty)(free))

    def report(free: PyTree, fixed: PyTree) -> dict[str, Any]:
        return part.report(_first(free) if own else free, _first(fixed))

    return part._replace(
        start=start,
        decode=decode,
        project=project,
        read=read,
        penalty=penalty if own and part.penalty else part.penalty,
        report=report if part.report else None,
    )


def _first(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[0], tree)


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
      Objective, prior and penalties are means over uploads.

    Raises:
      ValueError: if `uploads` is below 1.
    """
    if uploads < 1:
        raise ValueError(f"uploads must be at least 1, got {uploads!r}")

    def each(part: Unknown) -> Unknown:
        def start(rng: Rng, views: View, *targets: Array):
            rngs, told = jax.random.split(rng, uploads), _parted(targets, uploads)
            return jax.vmap(part.start)(rngs, views, *told)

        def decode(free: PyTree, fixed: PyTree) -> PyTree:
            values = jax.vmap(part.decode, axis_size=uploads)(free, fixed)
            return jax.tree.map(_joined, values)

        def read(values: PyTree, fixed: PyTree) -> PyTree:
            found = jax.vmap(part.read)(_parted(values, uploads), fixed)
            return jax.tree.map(_joined, found)

        def penalty(free: PyTree) -> Array:
            return jnp.mean(jax.vmap(part.penalty)(free))

        return part._replace(
            start=start,
            decode=decode,
            project=jax.vmap(part.project, axis_size=uploads),
            read=read,
            penalty=penalty if part.penalty else None,
            report=part.report and jax.vmap(part.report, axis_size=uploads),
        )

    def first(part: Unknown) -> Unknown:
        def start(rng: Rng, views: View):
            return part.start(rng, _first(views))

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
