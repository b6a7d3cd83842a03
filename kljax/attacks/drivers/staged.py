"""The descent in stages: each goes on, in other variables, where the last one ended.

Variables of all stages have their place in one vector, as long as the longest needs. So
one loop serves all stages, and the derivative of the network, which is most of what is
compiled, is compiled once and not once for each.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from kljax.attacks.attack import (
    Attack,
    Candidate,
    Objective,
    Optimiser,
    Prior,
    Search,
    Simulation,
    Unknown,
    Unknowns,
    no_prior,
)
from kljax.attacks.drivers.gradient import (
    check_optimiser,
    make_step,
    still_sound,
    worst,
)
from kljax.attacks.drivers.search import (
    Best,
    Run,
    begin,
    check_points,
    compose_loss,
    project,
    restarted,
    start_each,
)
from kljax.attacks.pooling import pool_observations
from kljax.core.types import Array, PyTree, Rng
from kljax.threat import View


class Stage(NamedTuple):
    """One stage of a descent: the space in which it looks for inputs.

    Attributes:
      enter: ``(free, fixed) -> (free, fixed)``, from where the stage before ended to
        where this one begins; of the first stage, from the start of the search. What
        stays as it is, or is measured from the beginning of the stage, is fixed.
      decode: ``(free, fixed) -> inputs``.
      project: ``(free, fixed) -> free``, after every move: back to what is allowed.
    """

    enter: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]
    decode: Callable[[PyTree, PyTree], PyTree]
    project: Callable[[PyTree, PyTree], PyTree] = lambda free, fixed: free


def descend_in_stages(
    unknowns: Unknowns,
    stages: Sequence[Stage],
    simulation: Simulation,
    objective: Objective,
    optimisers: Sequence[Optimiser],
    *,
    prior: Prior = no_prior,
    steps: Sequence[int],
    restarts: int = 1,
    snapshots: int = 0,
) -> Attack:
    """Composes a descent whose inputs are looked for in one space after another.

    A stage begins where the last iterate of the one before leaves off. Unknown labels
    and secrets stay what they are, and are moved in all stages. What is reported is the
    best candidate of the stage whose own matching loss is lowest, without the prior;
    within a stage iterates are compared with it. The truth has no say.

    Args:
      unknowns: what is looked for. Of the inputs, `Unknown.start` and `Unknown.read`
        count, the rest is said by the stages.
      stages: one or more.
      simulation, objective: see `kljax.attacks.descend`.
      optimisers: of each stage. They remember nothing of the stage before, and what
        they remember has the same form in all stages.
      prior: added to the objective. Its progress is that of the whole search.
      steps: evaluations of each stage.
      restarts: R independent starts, each through all stages; the one with the lowest
        matching loss is returned.
      snapshots: see `kljax.attacks.descend`; they divide the steps of all stages.

    Returns:
      The attack, with the ``info`` and ``numbers`` of `kljax.attacks.descend`:
      ``evaluations`` are R times the steps of all stages. Beside these ``numbers`` has
      ``stage`` [], which stage the candidate is of, from 0, and ``info`` has
      ``stage_losses`` [stages] of that restart.

    Raises:
      ValueError: for no stage, one of no steps, and not as many optimisers and steps
        as stages; and as `kljax.attacks.descend`.
    """
    if not len(stages) == len(optimisers) == len(steps) > 0:
        raise ValueError(
            f"{len(stages)} stages, {len(optimisers)} optimisers and {len(steps)} "
            "numbers of steps: give each stage its own, and one stage at least"
        )
    for optimiser, count in zip(optimisers, steps, strict=True):
        check_optimiser(optimiser)
        check_points(count, restarts, None)
    total = sum(steps)
    points = check_points(total, restarts, None, snapshots)

    def run(rng: Rng, view: View) -> Run:
        search = Search(unknowns, simulation, objective, prior)
        search = pool_observations(search, view)
        rngs = [jax.random.fold_in(rng, i) for i in range(len(search.unknowns))]
        (free, fixed), *others = start_each(search.unknowns, rngs, view)
        spaces = _lay_out(stages, free, fixed)

        def stage(carry, plan):
            vectors, free, found = carry
            index, before, count = plan
            vectors = spaces.enter(index, *vectors)
            inputs = Unknown(
                start=lambda rng, view: vectors,
                decode=lambda free, fixed: spaces.decode(index, free, fixed),
                project=lambda free: spaces.project(index, free, vectors[1]),
                read=search.unknowns.inputs.read,
            )
            known = [fixed for _, fixed in others]
            parts = zip(search.unknowns[1:], free, known, strict=True)
            now = Unknowns(inputs, *(_from(*part) for part in parts))
            start = begin(now, rng, view)
            step = make_step(
                compose_loss(search._replace(unknowns=now), start, view, total),
                lambda *args: jax.lax.switch(
                    index, [o.step for o in optimisers], *args
                ),
                lambda free: project(now, free),
                total,
            )
            first = start.free
            state = jax.lax.switch(index, [o.init for o in optimisers], first)

            def go(number: Array, carry):
                *carry, losses, kept = carry
                carry = step(carry, before + number)
                best = carry[2]
                lowest = jnp.minimum(best.matching, found.matching)
                place = (before + number) * points // total
                if snapshots:

                    def keep(kept: PyTree) -> PyTree:
                        better = (best.matching < found.matching) | (index == 0)
                        own = start.decode(best.free).inputs
                        inputs = _choose(better, own, found.candidate.inputs)
                        inputs = search.unknowns.inputs.read(inputs, fixed)
                        return jax.tree.map(
                            lambda all, one: all.at[place].set(one), kept, inputs
                        )

                    due = (before + number + 1) * points % total == 0
                    kept = jax.lax.cond(due, keep, lambda kept: kept, kept)
                return *carry, losses.at[place].set(lowest), kept

            begun = (first, state, Best(first, *worst()), -1)
            begun = jax.tree.map(jnp.asarray, (*begun, found.losses, found.snapshots))
            end, _, best, sound, *kept = jax.lax.fori_loop(0, count, go, begun)
            own = _Found(
                start.decode(best.free),
                start.report(best.free),
                best.total,
                best.matching,
                sound >= before + still_sound(count),
                index,
                *kept,
            )
            better = (best.matching < found.matching) | (index == 0)
            found = _choose(better, own, found)
            vectors, free = (end[0], vectors[1]), tuple(end[1:])
            # What is recorded goes on, whichever stage is the best.
            found = found._replace(losses=own.losses, snapshots=own.snapshots)
            return (vectors, free, found), best.matching

        vectors = spaces.pack(free, fixed)
        shapes = jax.eval_shape(lambda: _decoded(spaces, search, vectors, others))
        read = jax.eval_shape(
            lambda inputs: search.unknowns.inputs.read(inputs, fixed), shapes[0].inputs
        )
        nothing = _Found(
            *jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes),
            *worst(),
            jnp.asarray(False),
            jnp.asarray(0),
            jnp.full(points, jnp.inf),
            jax.tree.map(lambda x: jnp.zeros((points, *x.shape), x.dtype), read)
            if snapshots
            else None,
        )
        befores = jnp.cumsum(jnp.asarray([0, *steps[:-1]]))
        plan = jnp.arange(len(stages)), befores, jnp.asarray(steps)
        carry = vectors, tuple(free for free, _ in others), nothing
        (_, _, found), own = jax.lax.scan(stage, carry, plan)
        fixed = (fixed, *(value for _, value in others))
        parts = zip(search.unknowns, found.candidate, fixed, strict=True)
        read = (part.read(value, known) for part, value, known in parts)
        return Run(
            Candidate(*read),
            Best((), found.total, found.matching),
            found.finite,
            found.losses,
            found.snapshots,
            found.reported | {"stage_losses": own},
            {"stage": found.stage},
        )

    return restarted(
        run,
        unknowns,
        restarts=restarts,
        evaluations=total,
        choose_by_matching=True,
    )


class _Found(NamedTuple):
    """The best of all stages so far."""

    candidate: Candidate  # not read yet
    reported: dict[str, Any]  # see `Unknown.report`
    total: Array  # [] see `Best`
    matching: Array
    finite: Array  # [] bool: its stage did not break
    stage: Array  # [] int
    losses: Array  # [points]
    snapshots: PyTree  # [points, B, ...], or None


class _Spaces(NamedTuple):
    """The spaces of all stages in vectors of one length; see `Stage`.

    Attributes:
      pack: ``(free, fixed) -> (vector, vector)`` of the start of a search.
      enter, decode, project: as of a stage, of vectors, with its number [] in front.
    """

    pack: Callable[..., tuple[Array, Array]]
    enter: Callable[..., tuple[Array, Array]]
    decode: Callable[..., PyTree]
    project: Callable[..., Array]


def _lay_out(stages: Sequence[Stage], free: PyTree, fixed: PyTree) -> _Spaces:
    """Finds how long the vectors must be, and what is where in them."""
    shapes = [jax.eval_shape(lambda *x: x, free, fixed)]
    for stage in stages:
        shapes.append(jax.eval_shape(stage.enter, *shapes[-1]))
    lengths = [
        max(sum(leaf.size for leaf in jax.tree.leaves(pair[side])) for pair in shapes)
        for side in (0, 1)
    ]

    def pack(*pair: PyTree) -> tuple[Array, Array]:
        flat = (ravel_pytree(tree)[0] for tree in pair)
        return tuple(
            jnp.pad(vector, (0, length - vector.size))
            for vector, length in zip(flat, lengths, strict=True)
        )

    def unpack(number: int, *vectors: Array) -> list[PyTree]:
        found = []
        for tree, vector in zip(shapes[number], vectors, strict=True):
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tree)
            flat, unravel = ravel_pytree(zeros)
            found.append(unravel(vector[: flat.size]))
        return found

    def choose(branches: Sequence[Callable]) -> Callable:
        return lambda index, *vectors: jax.lax.switch(index, branches, *vectors)

    def entering(number: int, stage: Stage) -> Callable:
        return lambda *vectors: pack(*stage.enter(*unpack(number, *vectors)))

    def decoding(number: int, stage: Stage) -> Callable:
        return lambda *vectors: stage.decode(*unpack(number + 1, *vectors))

    def projecting(number: int, stage: Stage) -> Callable:
        def project(free: Array, fixed: Array) -> Array:
            free, fixed = unpack(number + 1, free, fixed)
            return pack(stage.project(free, fixed), fixed)[0]

        return project

    return _Spaces(
        pack,
        *(
            choose([make(number, stage) for number, stage in enumerate(stages)])
            for make in (entering, decoding, projecting)
        ),
    )


def _decoded(
    spaces: _Spaces, search: Search, vectors: tuple[Array, Array], others: list
) -> tuple[Candidate, dict[str, Any]]:
    """Decodes the start of the first stage, and what is reported of it, for shapes."""
    first = spaces.enter(jnp.asarray(0), *vectors)
    pairs = list(zip(search.unknowns[1:], others, strict=True))
    decoded = (part.decode(*own) for part, own in pairs)
    told = [part.report(*own) for part, own in pairs if part.report]
    reported = {name: value for one in told for name, value in one.items()}
    return Candidate(spaces.decode(jnp.asarray(0), *first), *decoded), reported


def _choose(first: Array, one: PyTree, other: PyTree) -> PyTree:
    """Chooses between two trees by `first` [] bool."""
    return jax.tree.map(lambda a, b: jnp.where(first, a, b), one, other)


def _from(part: Unknown, free: PyTree, fixed: PyTree) -> Unknown:
    """Starts an unknown at what is known of it already."""
    return part._replace(start=lambda rng, view: (free, fixed))


def split_steps(steps: int, shares: Sequence[float]) -> tuple[int, ...]:
    """Splits evaluations among stages, as evenly as whole ones can be.

    Args:
      steps: of all stages.
      shares: of each, positive; their sum does not matter.

    Raises:
      ValueError: for fewer steps than stages, and a share that is not positive.
    """
    if not all(share > 0 for share in shares):
        raise ValueError(f"shares of the steps must be positive, got {(*shares,)}")
    if steps < len(shares):
        raise ValueError(
            f"steps={steps} are fewer than the {len(shares)} stages of this search: "
            f"each needs one, so take {len(shares)} or more"
        )
    left, total, counts = steps, sum(shares), []
    for index, share in enumerate(shares):
        after = len(shares) - index - 1
        count = min(max(1, round(left * share / total)), left - after)
        counts.append(count)
        left, total = left - count, total - share
    return tuple(counts)
