"""The evolution: a population is asked for, its values are told; no gradient is taken.

A simulation is a gradient of the network, so a value costs one first-order pass, where
one step of a descent costs a second-order one.
"""

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from kljax.attacks.attack import (
    RESTARTS,
    Attack,
    Evolution,
    Objective,
    Prior,
    Search,
    Simulation,
    Unknowns,
    no_prior,
)
from kljax.attacks.drivers.search import (
    Best,
    Run,
    begin,
    check_points,
    compose_loss,
    project,
    restarted,
    take_snapshot,
)
from kljax.attacks.objectives import infinite_if_broken
from kljax.attacks.pooling import pool_observations
from kljax.core.types import Array, Rng
from kljax.threat import View

SIDE_BY_SIDE = 64  # candidates of one generation: speed and memory only


def evolve(
    unknowns: Unknowns,
    simulation: Simulation,
    objective: Objective,
    evolution: Evolution,
    *,
    prior: Prior = no_prior,
    steps: int,
    restarts: int = 1,
    choose_by_matching: bool = False,
    points: int | None = None,
    snapshots: int = 0,
) -> Attack:
    """Composes an attack that tries populations of candidates.

    Candidates of a generation are evaluated side by side, `SIDE_BY_SIDE` at most, so
    that a large generation takes no more memory. What is asked for is
    brought back to what is allowed (`Unknown.project`) before it is evaluated, and is
    told as it was asked for.

    Args:
      unknowns: what is looked for; what they have free becomes one vector.
      simulation: what gradient a candidate gives.
      objective: distance of simulated and observed gradient.
      evolution: what asks and is told.
      prior: added to the objective, as is the penalty of every unknown. Candidates are
        compared with the prior of the last generation, whatever it was when they were
        met.
      steps: evaluations per restart: as many generations as populations go into them.
      restarts: R independent searches; the one with the lowest own loss is returned.
        They may start alike, for each draws its own candidates.
      choose_by_matching: whether restarts are compared by the matching loss of their
        best candidates alone.
      points: the matching loss of the best candidate so far is recorded this many
        times, evenly; None for as many, at most 20, as divide the generations.
      snapshots: see `kljax.attacks.descend`; they divide the generations.

    Returns:
      The attack, with the ``info`` and ``numbers`` of `kljax.attacks.descend`:
      ``evaluations`` are R x steps. It is not `finite` if no candidate of the last
      generation has a finite loss.

    Raises:
      ValueError: if steps are no whole number of populations, if restarts or points
        are below 1, or `points` does not divide the generations; for `points` and
        `snapshots`; for what is no `Evolution`; and from the attack, for an upload of
        another network, and a prior that compares restarts, whose candidates have
        nothing to do with each other.
    """
    if not isinstance(evolution, Evolution):
        raise ValueError(
            "this attack tries populations and needs a kljax.attacks.Evolution, such "
            f"as cma_es; it was given {type(evolution).__name__}"
        )
    population = evolution.population
    if steps < population or steps % population:
        raise ValueError(
            f"steps={steps} evaluations are no whole number of generations of "
            f"{population}: take {max(1, round(steps / population)) * population}"
        )
    generations = steps // population
    points = check_points(generations, restarts, points, snapshots)

    def run(rng: Rng, view: View) -> Run:
        search = Search(unknowns, simulation, objective, prior)
        search = pool_observations(search, view)
        start = begin(search.unknowns, rng, view)
        loss = compose_loss(search, start, view, generations)
        if RESTARTS in loss.believed.on_axes:
            raise ValueError(
                "a prior that compares restarts does not go with a population: the "
                "candidates of two restarts have nothing to do with each other"
            )
        first, unravel = ravel_pytree(start.free)
        rng_first, rng_search = jax.random.split(jax.random.fold_in(rng, len(unknowns)))

        def generation(carry, number):
            state, best, sound = carry
            rng_ask, rng_tell = jax.random.split(jax.random.fold_in(rng_search, number))
            asked, state = evolution.ask(rng_ask, state)

            def judge(flat: Array) -> tuple[Array, Best]:
                free = project(search.unknowns, unravel(flat))
                value, compared = loss.value(free, number / generations)
                return value, Best(free, *compared)

            if population <= SIDE_BY_SIDE:
                values, tried = jax.vmap(judge)(asked)
            else:
                values, tried = jax.lax.map(judge, asked, batch_size=SIDE_BY_SIDE)
            values = infinite_if_broken(values)
            chosen = jnp.argmin(infinite_if_broken(tried.total))
            new = jax.tree.map(lambda x: x[chosen], tried)
            better = new.total < best.total  # false for NaN
            best = jax.tree.map(lambda a, b: jnp.where(better, a, b), new, best)
            sound = jnp.where(jnp.any(jnp.isfinite(values)), number, sound)
            state = evolution.tell(rng_tell, asked, values, state)
            return (state, best, sound), None

        def segment(carry, numbers):
            carry, _ = jax.lax.scan(generation, carry, numbers)
            best = carry[1]
            return carry, (best.matching, take_snapshot(start, snapshots, best))

        worst = jnp.full((), jnp.inf)
        carry = (evolution.init(rng_first, first), Best(start.free, worst, worst), -1)
        carry = jax.tree.map(jnp.asarray, carry)
        numbers = jnp.arange(generations).reshape(points, -1)
        (_, best, sound), kept = jax.lax.scan(segment, carry, numbers)
        found = start.read(start.decode(best.free))
        reported = start.report(best.free)
        return Run(found, best, sound == generations - 1, *kept, reported)

    return restarted(
        run,
        unknowns,
        restarts=restarts,
        evaluations=steps,
        choose_by_matching=choose_by_matching,
        draws=True,
    )
