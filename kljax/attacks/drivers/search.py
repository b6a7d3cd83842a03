"""What every search does, whatever moves it: start, decode, compare, choose."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from kljax.attacks.attack import (
    RESTARTS,
    Attack,
    Candidate,
    Pool,
    Reconstruction,
    Search,
    Unknowns,
)
from kljax.attacks.visibility import says_something
from kljax.core.dependence import Dependence, trace_dependence
from kljax.core.trees import named
from kljax.core.types import Array, PyTree, Rng
from kljax.threat import View

END = 20  # the last twentieth of the steps is the end of a search
POINTS = 20  # at most, at which losses are recorded


class Best(NamedTuple):
    """The best candidate so far."""

    free: PyTree
    total: Array  # objective + the last step's prior: what candidates are compared by
    matching: Array  # objective alone


class Run(NamedTuple):
    """What one restart comes to."""

    candidate: Candidate
    best: Best
    finite: Array  # [] bool: the search did not break
    losses: Array  # [points]
    snapshots: PyTree = None  # [points, B, ...]: inputs found by then; None for none
    reported: dict[str, Any] = {}  # for the "info" of the reconstruction
    numbers: dict[str, Array] = {}  # for its "numbers", beside its evaluations


class Start(NamedTuple):
    """Where one restart begins.

    Attributes:
      free: what is looked for, one tree for each part of the candidate.
      decode: ``free -> Candidate``.
      read: ``Candidate -> Candidate``, as it is reported (`Unknown.read`).
      report: ``free -> {name: value}``, what is reported beside it (`Unknown.report`).
    """

    free: tuple[PyTree, ...]
    decode: Callable[[PyTree], Candidate]
    read: Callable[[Candidate], Candidate]
    report: Callable[[PyTree], dict[str, Any]]


Restart: TypeAlias = Callable[[Rng, View], Run]


class Pooling(NamedTuple):
    """How the candidates of all restarts become one, instead of a choice among them."""

    pool: Pool
    matching: Callable[[View, Candidate], Array]  # of what was pooled


def begin(unknowns: Unknowns, rng: Rng, view: View) -> Start:
    """Draws the start of one restart."""
    rngs = [jax.random.fold_in(rng, i) for i in range(len(unknowns))]
    starts = start_each(unknowns, rngs, view)
    fixed = tuple(value for _, value in starts)

    def decode(free: PyTree) -> Candidate:
        parts = zip(unknowns, free, fixed, strict=True)
        return Candidate(*(part.decode(z, known) for part, z, known in parts))

    def read(found: Candidate) -> Candidate:
        parts = zip(unknowns, found, fixed, strict=True)
        return Candidate(*(part.read(value, known) for part, value, known in parts))

    def report(free: PyTree) -> dict[str, Any]:
        parts = zip(unknowns, free, fixed, strict=True)
        told = [part.report(z, known) for part, z, known in parts if part.report]
        return {name: value for one in told for name, value in one.items()}

    return Start(tuple(free for free, _ in starts), decode, read, report)


def take_snapshot(start: Start, snapshots: int, best: Best) -> PyTree:
    """Reads the inputs that would be found if the search ended; None if none are kept.

    Args:
      start: of the search.
      snapshots: to be kept in all.
      best: so far.
    """
    return start.read(start.decode(best.free)).inputs if snapshots else None


def project(unknowns: Unknowns, free: PyTree) -> PyTree:
    """Brings every part back to what is allowed."""
    return tuple(part.project(z) for part, z in zip(unknowns, free, strict=True))


class Loss(NamedTuple):
    """The attacker's own loss of one restart.

    Attributes:
      value: ``(free, progress []) -> (value [], (total [], matching []))``: what moves
        the search, and what `Best` has.
      believed: what the prior depends on.
      last: progress at the last step.
    """

    value: Callable[[PyTree, Array], tuple[Array, tuple[Array, Array]]]
    believed: Dependence
    last: float


def compose_loss(search: Search, start: Start, view: View, steps: int) -> Loss:
    """Composes the loss of one restart; see the drivers for the arguments."""
    unknowns, simulation, objective, prior = search
    last = (steps - 1) / steps
    believed = trace_dependence(
        lambda p: prior(view, start.decode(start.free), p), last
    )
    penalties = [part.penalty for part in unknowns]

    def value(free: PyTree, progress: Array) -> tuple[Array, tuple[Array, Array]]:
        candidate = start.decode(free)
        simulated, observed = simulation(view, candidate)
        check_alike(simulated, observed)
        matching = objective(simulated, observed)
        # Not a sum from 0: there are none as a rule.
        extra = [own(z) for own, z in zip(penalties, free, strict=True) if own]
        if not believed.on_argument:
            total = sum(extra, matching + prior(view, candidate, progress))
            return total, (total, matching)
        # Mapped, whatever in a prior does not depend on progress is made once.
        now, then = jax.vmap(lambda p: prior(view, candidate, p))(
            jnp.stack([progress, jnp.asarray(last, progress.dtype)])
        )
        return sum(extra, matching + now), (sum(extra, matching + then), matching)

    return Loss(value, believed, last)


def check_points(
    steps: int, restarts: int, points: int | None, snapshots: int = 0
) -> int:
    """Settles how often the loss is recorded.

    Args:
      steps, restarts: of the search.
      points: asked for; None for as many as divide the steps, at most `POINTS`, or
        `snapshots` where any are kept.
      snapshots: to be kept at most.

    Raises:
      ValueError: if any but `snapshots` is below 1 or this is below 0, if `points` does
        not divide `steps`, and for both `points` and `snapshots`.
    """
    if snapshots < 0 or (snapshots and points is not None):
        raise ValueError(
            f"snapshots={snapshots} must be at least 0, and are kept where losses are "
            f"recorded: leave points={points} out"
        )
    if points is None:
        most = snapshots or POINTS
        points = next((n for n in range(most, 0, -1) if steps % n == 0), 1)
    if min(steps, restarts, points) < 1 or steps % points:
        raise ValueError(
            f"steps={steps}, restarts={restarts} and points={points} must be at least "
            "1, and points must divide steps"
        )
    return points


def restarted(
    run: Restart,
    unknowns: Unknowns,
    *,
    restarts: int,
    evaluations: int,
    choose_by_matching: bool,
    draws: bool = False,
    pooling: Pooling | None = None,
) -> Attack:
    """Makes an attack of one restart: runs several, and chooses among them.

    Args:
      run: one restart.
      unknowns: what it looks for.
      restarts: R.
      evaluations: of each restart.
      choose_by_matching: whether restarts are compared without the prior.
      draws: whether a search goes its own way from the same start.
      pooling: of the candidates, which are then not read yet; None for a choice.
    """

    def attack(rng: Rng, view: View) -> Reconstruction:
        drawn = draws or restarts == 1 or _draws_its_start(unknowns, rng, view)
        if not drawn:
            raise ValueError(
                f"restarts={restarts} would all start alike: nothing in this attack's "
                "start is drawn at random; take restarts=1, or another start"
            )
        indices = jnp.arange(restarts)

        def restart(index: Array) -> Run:
            return run(jax.random.fold_in(rng, index), view)

        if restarts == 1:
            # An axis of length 1 is not free: XLA compiles it twice as long.
            runs = jax.tree.map(lambda x: x[None], restart(indices[0]))
        else:
            runs = jax.vmap(restart, axis_name=RESTARTS)(indices)
        own = runs.best.matching if choose_by_matching else runs.best.total
        chosen = jnp.argmin(own)
        candidate, best, finite, losses, snapshots, reported, numbers = jax.tree.map(
            lambda x: x[chosen], runs
        )
        loss, spent, info = best.matching, restarts * evaluations, {}
        if pooling is not None:
            candidate, numbers, info = pooling.pool(runs.candidate, own, chosen)
            loss, spent = pooling.matching(view, candidate), spent + 1
            # What was settled at the start of the restart that the pool goes by.
            start = begin(unknowns, jax.random.fold_in(rng, chosen), view)
            candidate = start.read(candidate)
        return Reconstruction(
            inputs=candidate.inputs,
            labels=candidate.targets,
            loss=loss,
            finite=finite & jnp.isfinite(loss) & says_something(view),
            info={
                **on_the_way(losses, evaluations, snapshots),
                "secret": candidate.secret,
                "restart_losses": runs.best.matching,
                **reported,
                **info,
            },
            numbers={"evaluations": jnp.asarray(spent), **numbers},
        )

    return attack


def on_the_way(
    losses: Array, evaluations: int, snapshots: PyTree = None
) -> dict[str, PyTree]:
    """Makes what the ``info`` of a reconstruction says of the way to it.

    Whatever iterates records the same (`kljax.studies.convergence` reads it).

    Args:
      losses: [points], recorded evenly, the last at the end.
      evaluations: of the restart that is returned.
      snapshots: [points, B, ...]; None where none are kept.
    """
    points = len(losses)
    spent = evaluations // points * jnp.arange(1, points + 1)
    kept = {} if snapshots is None else {"snapshots": snapshots}
    return {"losses": losses, "loss_evaluations": spent, **kept}


def check_alike(simulated: PyTree, observed: PyTree) -> None:
    """Refuses an upload that is not of the network it is held against.

    Left alone, shapes that broadcast would be compared.

    Raises:
      ValueError: with the tensor's name and both shapes.
    """
    trees = named(simulated), named(observed)
    for name in sorted(trees[0].keys() | trees[1].keys()):
        ours, theirs = (
            jnp.shape(tree[name]) if name in tree else "missing" for tree in trees
        )
        if ours != theirs:
            raise ValueError(
                f"the upload does not fit the network: tensor {name!r} is {theirs}, "
                f"and in the network's own gradient it is {ours}"
            )


def start_each(
    unknowns: Unknowns, rngs: Sequence[Rng], view: View
) -> list[tuple[PyTree, PyTree]]:
    """Starts every part, of a random key of its own: its (free, fixed)."""
    inputs, targets, secret = unknowns
    rng_inputs, rng_targets, rng_secret = rngs
    aims = targets.start(rng_targets, view)
    # Labels may be in an order that was drawn: who depends on it is told that one.
    told = (targets.decode(*aims),) if inputs.told else ()
    return [
        inputs.start(rng_inputs, view, *told),
        aims,
        secret.start(rng_secret, view),
    ]


def _draws_its_start(unknowns: Unknowns, rng: Rng, view: View) -> bool:
    rngs = [rng] * len(unknowns)
    return trace_dependence(lambda r: start_each(unknowns, r, view), rngs).on_argument
