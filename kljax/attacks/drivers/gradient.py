"""The descent: one value and gradient, one move.

Every optimiser, line search included, makes exactly one evaluation per step, so steps
are evaluations and batched victims never wait for each other. Between steps there may
be moves that follow no gradient (`kljax.attacks.attack.Moves`), all victims' at once.
"""

import functools
from collections.abc import Callable

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
    take_snapshot,
)
from kljax.attacks.objectives import infinite_if_broken
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
    snapshots: int = 0,
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
      snapshots: instead of `points`: as many at most, as divide the steps, and at each
        the inputs of that candidate are kept, too. They cost memory, and one decoding
        each; no result depends on them. 0 for none.
      pool: makes one candidate of those of all restarts, before they are read; its own
        matching loss is then reported, which takes one evaluation more. None for the
        one with the lowest loss.

    Returns:
      The attack. Its ``info`` has ``losses`` [points] of the restart that is returned,
      ``loss_evaluations`` [points], of that restart by then, ``snapshots`` [points, B,
      ...] where they are kept (before `pool`; else the last are what is returned),
      ``secret`` (that part of the best candidate) and ``restart_losses`` [R], its
      ``numbers`` have ``evaluations`` (R x steps). An upload of nothing but zeros, or
      one that is hidden throughout, has no image in it: what comes back is not
      `finite`.

    Raises:
      ValueError: for what is no `Optimiser`; if steps, restarts or points are below 1,
        or `points` does not divide `steps`; for `points` and `snapshots`; and from the
        attack, where a tensor of the upload does not have the shape that the network's
        has, and where several restarts would start alike, because no unknown draws its
        start.
    """
    check_optimiser(optimiser)
    if moves is not None and not (moves.every >= 1 and 0 <= moves.after <= 1):
        raise ValueError(
            f"moves every {moves.every} steps after {moves.after} of them: every must "
            "be at least 1, and after in [0, 1]"
        )
    points = check_points(steps, restarts, points, snapshots)

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
        first, decode, shift = start.free, start.decode, None
        if moves is not None:
            judge = Judge(decode, functools.partial(_matching, loss))
            rng_moves = jax.random.fold_in(rng, len(unknowns))
            first = moves.first(jax.random.fold_in(rng_moves, 0), view, judge, first)

        if moves is not None and moves.between is not None:

            def shift(free: PyTree, number: Array) -> PyTree:
                rng_move = jax.random.fold_in(rng_moves, number + 1)
                return jax.lax.cond(
                    moves.due(number, steps),
                    lambda free: moves.between(rng_move, view, judge, free),
                    lambda free: free,
                    free,
                )

        step = make_step(
            loss, optimiser.step, functools.partial(project, search.unknowns), steps
        )

        def go(carry, number):
            free, *rest = step(carry, number)
            return (free if shift is None else shift(free, number), *rest), None

        def segment(carry, numbers):
            carry, _ = jax.lax.scan(go, carry, numbers)
            best = carry[2]
            return carry, (best.matching, take_snapshot(start, snapshots, best))

        carry = (first, optimiser.init(first), Best(first, *worst()), -1)
        carry = jax.tree.map(jnp.asarray, carry)
        numbers = jnp.arange(steps).reshape(points, -1)
        (_, _, best, sound), kept = jax.lax.scan(segment, carry, numbers)
        finite = sound >= still_sound(steps)
        found = decode(best.free)
        if RESTARTS in loss.believed.on_axes and not choose_by_matching:
            # The best candidates were met at different steps, among other iterates.
            value = best.matching + search.prior(view, found, jnp.asarray(loss.last))
            value = jnp.where(jnp.isfinite(value), value, best.total)
            best = best._replace(total=value)
        read = start.read if pool is None else lambda candidate: candidate
        return Run(read(found), best, finite, *kept, start.report(best.free))

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


def make_step(
    loss: Loss,
    move: Callable[..., tuple[PyTree, PyTree]],
    project: Callable[[PyTree], PyTree],
    steps: int,
) -> Callable[[tuple, Array], tuple]:
    """Makes one step of a descent.

    Args:
      loss: what is descended.
      move: `Optimiser.step`.
      project: ``free -> free``, after every move: back to what is allowed.
      steps: of the whole descent.

    Returns:
      ``(carry, number [] of the step) -> carry`` of (free, state of the optimiser,
      `Best` so far, number of the last step whose value was finite).
    """
    evaluate = jax.value_and_grad(loss.value, has_aux=True)

    def step(carry, number):
        free, state, best, sound = carry
        (value, compared), grads = evaluate(free, number / steps)
        sound = jnp.where(jnp.isfinite(value), number, sound)
        new = Best(free, *compared)
        # NaN compares as false: a broken iterate is never the best one.
        better = new.total < best.total
        best = jax.tree.map(lambda a, b: jnp.where(better, a, b), new, best)
        free, state = move(free, state, value, grads)
        return project(free), state, best, sound

    return step


def worst() -> tuple[Array, Array]:
    """Gives what `Best` has of a search that has not begun."""
    infinite = jnp.full((), jnp.inf)
    return infinite, infinite


def still_sound(steps: int | Array) -> int | Array:
    """Gives the number of a step by which a descent of so many has not broken.

    A line search may try what is not finite, and come back; a broken descent does not.
    So the end alone says whether it broke.
    """
    if isinstance(steps, int):
        return steps - max(1, steps // END)
    return steps - jnp.maximum(1, steps // END)


def check_optimiser(optimiser: Optimiser) -> None:
    """Refuses what follows no gradient.

    Raises:
      ValueError: for what is no `Optimiser`.
    """
    if isinstance(optimiser, Optimiser):
        return
    raise ValueError(
        "this attack follows gradients and needs an optimiser that does, such as "
        f"lbfgs or adam; it was given {type(optimiser).__name__}, which asks for "
        "a population"
        if isinstance(optimiser, Evolution)
        else f"optimiser must be a kljax.attacks.Optimiser, got {optimiser!r}"
    )


def _matching(loss: Loss, free: PyTree) -> Array:
    """Gives the objective [] at a candidate; infinite where it is not finite."""
    _, (_, matching) = loss.value(free, jnp.zeros(()))
    return infinite_if_broken(matching)
