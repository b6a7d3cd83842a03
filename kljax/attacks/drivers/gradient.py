"""The descent: one value and gradient, one move.

Every optimiser, line search included, makes exactly one evaluation per step, so steps
are evaluations and batched victims never wait for each other. Between steps there may
be moves that follow no gradient (`kljax.attacks.attack.Moves`), all victims' at once.
"""

import functools

import jax
import jax.numpy as jnp

from kljax.attacks.attack import (
    RESTARTS,
    Attack,
    Evolution,
    Judge,
    Moves,
    Objective,
    Optimiser,
    Pool,
    Prior,
    Search,
    Simulation,
    Unknowns,
    no_prior,
)
from kljax.attacks.drivers.search import (
    END,
    Best,
    Loss,
    Pooling,
    Run,
    begin,
    check_points,
    compose_loss,
    project,
    restarted,
)
from kljax.attacks.pooling import pool_observations
from kljax.core.types import Array, PyTree, Rng
from kljax.threat import View


def descend(
    unknowns: Unknowns,
    simulation: Simulation,
    objective: Objective,
    optimiser: Optimiser,
    *,
    prior: Prior = no_prior,
    moves: Moves | None = None,
    steps: int,
    restarts: int = 1,
    choose_by_matching: bool = False,
    points: int | None = None,
    pool: Pool | None = None,
) -> Attack:
    """Composes an attack that follows gradients.

    Args:
      unknowns: what is looked for.
      simulation: what gradient a candidate gives.
      objective: distance of simulated and observed gradient.
      optimiser: how to move.
      prior: added to the objective. Iterates, and restarts, are compared with the
        prior of the last step, whatever it was when they were met.
      moves: that follow no gradient, before and between the steps; None for none. What
        the optimiser remembers stays as it is.
      steps: evaluations per restart.
      restarts: R independent starts; the one with the lowest own loss is returned.
        With several, they run on the axis `RESTARTS`, where a prior may compare
        them. Such a prior holds an iterate against the others' iterates of the same
        step, and the restarts' best candidates against each other.
      choose_by_matching: whether restarts are compared by the matching loss of their
        best candidates, without the prior; iterates always are with it.
      points: the matching loss of the best candidate so far is recorded this many
        times, evenly; None for as many, at most 20, as divide the steps.
      pool: makes one candidate of those of all restarts, before they are read; its own
        matching loss is then reported, which takes one evaluation more. None for the
        one with the lowest loss.

    Returns:
      The attack. Its ``info`` has ``losses`` [points], ``secret`` (that part of the
      best candidate) and ``restart_losses`` [R], its ``numbers`` have ``evaluations``
      (R x steps). An upload of nothing but zeros, or one that is hidden throughout, has
      no image in it: what comes back is not `finite`.

    Raises:
      ValueError: for what is no `Optimiser`; if steps, restarts or points are below 1,
        or `points` does not divide `steps`; and from the attack, where a tensor of the
        upload does not have the shape that the network's has, and where several
        restarts would start alike, because no unknown draws its start.
    """
    if not isinstance(optimiser, Optimiser):
        raise ValueError(
            "this attack follows gradients and needs an optimiser that does, such as "
            f"lbfgs or adam; it was given {type(optimiser).__name__}, which asks for "
            "a population"
            if isinstance(optimiser, Evolution)
            else f"optimiser must be a kljax.attacks.Optimiser, got {optimiser!r}"
        )
    if moves is not None and not (moves.every >= 1 and 0 <= moves.after <= 1):
        raise ValueError(
            f"moves every {moves.every} steps after {moves.after} of them: every must "
            "be at least 1, and after in [0, 1]"
        )
    points = check_points(steps, restarts, points)

    def run(rng: Rng, view: View) -> Run:
        if pool is not None and view.observations is not None:
            raise ValueError(
                "this attack pools its restarts, and cannot pool several observations "
                "as well: write observations=1"
            )
        search = Search(unknowns, simulation, objective, prior)
        search = pool_observations(search, view)
        start = begin(search.unknowns, rng, view)
        loss = compose_loss(search, start, view, steps)
        first, decode = start.free, start.decode
        evaluate = jax.value_and_grad(loss.value, has_aux=True)
        if moves is not None:
            judge = Judge(decode, functools.partial(_matching, loss))
            rng_moves = jax.random.fold_in(rng, len(unknowns))
            first = moves.first(jax.random.fold_in(rng_moves, 0), view, judge, first)

        def step(carry, number):
            free, state, best, sound = carry
            (value, compared), grads = evaluate(free, number / steps)
            sound = jnp.where(jnp.isfinite(value), number, sound)
            new = Best(free, *compared)
            # NaN compares as false: a broken iterate is never the best one.
            better = new.total < best.total
            best = jax.tree.map(lambda a, b: jnp.where(better, a, b), new, best)
            free, state = optimiser.step(free, state, value, grads)
            free = project(search.unknowns, free)
            if moves is not None and moves.between is not None:
                rng_move = jax.random.fold_in(rng_moves, number + 1)
                free = jax.lax.cond(
                    moves.due(number, steps),
                    lambda free: moves.between(rng_move, view, judge, free),
                    lambda free: free,
                    free,
                )
            return (free, state, best, sound), None

        def segment(carry, numbers):
            carry, _ = jax.lax.scan(step, carry, numbers)
            return carry, carry[2].matching

        worst = jnp.full((), jnp.inf)
        carry = (first, optimiser.init(first), Best(first, worst, worst), -1)
        carry = jax.tree.map(jnp.asarray, carry)
        numbers = jnp.arange(steps).reshape(points, -1)
        (_, _, best, sound), losses = jax.lax.scan(segment, carry, numbers)
        # A line search may try what is not finite, and come back; a broken descent does
        # not. So the end alone says whether it broke.
        finite = sound >= steps - max(1, steps // END)
        found = decode(best.free)
        if RESTARTS in loss.believed.on_axes and not choose_by_matching:
            # The best candidates were met at different steps, among other iterates.
            value = best.matching + search.prior(view, found, jnp.asarray(loss.last))
            value = jnp.where(jnp.isfinite(value), value, best.total)
            best = best._replace(total=value)
        read = start.read if pool is None else lambda candidate: candidate
        return Run(read(found), best, finite, losses, start.report(best.free))

    return restarted(
        run,
        unknowns,
        restarts=restarts,
        evaluations=steps,
        choose_by_matching=choose_by_matching,
        pooling=None
        if pool is None
        else Pooling(pool, lambda view, found: objective(*simulation(view, found))),
    )


def _matching(loss: Loss, free: PyTree) -> Array:
    """Gives the objective [] at a candidate; infinite where it is not finite."""
    _, (_, matching) = loss.value(free, jnp.zeros(()))
    return jnp.where(jnp.isfinite(matching), matching, jnp.inf)
