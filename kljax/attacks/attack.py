"""What an attack is, and the one driver of all iterative attacks.

An attack is a function ``(rng, View) -> Reconstruction`` for one victim. The iterative
kind is composed: *unknowns* (what is looked for, with a decoder each) x *simulation*
(the gradient a candidate would give) x *objective* (distance to the observed one) x
*prior* x *optimiser* x *start*. `iterative` owns the loop: it evaluates, keeps the
best candidate by the attacker's own loss, and lets the optimiser move. One evaluation
is one value and gradient; every optimiser, line search included, makes exactly one per
step, so steps are evaluations and batched victims never wait for each other.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from kljax.core.dependence import trace_dependence
from kljax.core.inputs import InputSpec
from kljax.core.trees import named
from kljax.core.types import Array, Gates, Loss, Model, Path, Public, PyTree, Rng
from kljax.models.chain import Layer
from kljax.threat import ThreatModel, View


class Protocol(NamedTuple):
    """How every client trains in one round; the server prescribes it, so it is known.

    Attributes:
      optimiser: of the clients, in this round.
      steps: T local steps.
      batch: B examples in each. A client's n examples are cut into batches of B in
        order, and gone through again in the same order until T steps are made.
      learning_rate: what a change is measured in. Changes are divided by
        ``learning_rate * steps`` before they are compared: one step of plain gradient
        descent then gives minus the gradient, and objectives and priors keep the
        scale that they have for gradients.
      penalty: ``(Public now, Public received) -> []``, added to the loss; or None.
    """

    optimiser: optax.GradientTransformation
    steps: int
    batch: int
    learning_rate: float
    penalty: Callable[[Public, Public], Array] | None = None


def as_sent(grads: PyTree, sent: PyTree | None, earlier: PyTree | None) -> PyTree:
    """Assumes that a defence does nothing to what it sends."""
    del sent, earlier
    return grads


class Setting(NamedTuple):
    """What everybody knows about the protocol: the ground an attack is built on.

    Attributes:
      model: the network.
      loss: the clients' training loss.
      gates: ``(public, Private) -> gates`` of the defence in force.
      simulate: ``(grads, sent, earlier) -> grads``, what the attacker assumes the
        defence does to a gradient, given what it sees (`View.grads`, `View.earlier`).
        Of a local step nobody sees anything, and both are None.
      inputs: what the network takes in, and where it is looked for.
      num_classes: Kc.
      classifier: path of the last dense layer, from which labels are read.
      sites: (path, channels) of every gated layer, in chain order.
      threat: what the attacker knows and does.
      protocol: of an upload after several local steps; None for one step's gradient.
      chain: the network's layers in forward order, where they simply follow each
        other; () where they do not.
      label_rule: how labels are recovered, where they are: ``auto`` or a name in
        `kljax.attacks.labels.RULES`.
      feeds: (site, the layer with a kernel whose output the site takes in), where that
        is known (`kljax.models.feeding_layers`).
      features: weight of the classifier's input as a term of its own
        (`kljax.attacks.priors.with_feature`); 0 for none.
      draw_gates: ``rng -> gates`` of somebody who has just initialised the same lock
        and drawn a private key: what everybody can simulate. None where there is none.
      simulate_update: the same of what the defence does to a whole change.
    """

    model: Model
    loss: Loss
    gates: Callable[..., Any]
    simulate: Callable[..., Any]
    inputs: InputSpec
    num_classes: int
    classifier: str
    sites: tuple[tuple[Path, int], ...]
    threat: ThreatModel
    protocol: Protocol | None = None
    chain: tuple[Layer, ...] = ()
    label_rule: str = "auto"
    feeds: tuple[tuple[Path, Path], ...] = ()
    draw_gates: Callable[[Rng], Gates] | None = None
    features: float = 0.0
    simulate_update: Callable[..., Any] = as_sent

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Gives [H, W, C] of one image, to what is made for images alone.

        Raises:
          ValueError: for inputs of another kind.
        """
        if self.inputs.kind != "image":
            raise ValueError(
                f"this attack looks for images, and the inputs are {self.inputs.kind}"
            )
        return self.inputs.shape

    def shapes(self) -> tuple[PyTree, PyTree]:
        """Finds shapes of the network's params and stats, {path: ShapeDtypeStruct}."""
        return jax.eval_shape(self.model.init, jax.random.key(0))


class Reconstruction(NamedTuple):
    """What an attack gives back for one victim.

    The best candidate by the attacker's own loss, over iterates and restarts.
    """

    images: Array  # [B, H, W, C], or inputs of another kind, as a dataset has them
    labels: Array  # [B] int32; `UNKNOWN` where nothing told them
    loss: Array  # [] matching loss of this candidate, without priors
    finite: Array  # [] bool: something was there to match, and the search did not break
    info: dict[str, Any]  # for humans: "losses" [points], "lock", ...


Attack: TypeAlias = Callable[[Rng, View], Reconstruction]


class Candidate(NamedTuple):
    """One guess at everything that the gradient depends on."""

    images: Array  # [B, H, W, C], or what a network is fed in place of other inputs
    targets: Array  # [B, Kc]
    lock: PyTree  # a Private, or gates: whatever the lock strategy works with


class Unknown(NamedTuple):
    """One part of the candidate.

    Attributes:
      start: ``(rng, View) -> (free, fixed)``: what is optimised, and what is not.
      decode: ``(free, fixed) -> value`` of that part.
      project: ``free -> free``, after every move: back to what is allowed.
      read: ``(value, fixed) -> value``, of what is found in the end: a token, where
        embeddings were looked for.
    """

    start: Callable[[Rng, View], tuple[PyTree, PyTree]]
    decode: Callable[[PyTree, PyTree], PyTree]
    project: Callable[[PyTree], PyTree] = lambda free: free
    read: Callable[[PyTree, PyTree], PyTree] = lambda value, fixed: value


class Unknowns(NamedTuple):
    """The parts of a `Candidate`, each an `Unknown`."""

    images: Unknown
    targets: Unknown
    lock: Unknown


class Optimiser(NamedTuple):
    """A descent method that is told a value and a gradient, and moves once.

    Attributes:
      init: ``free -> state``.
      step: ``(free, state, value [], grads) -> (free, state)``; `value` and `grads`
        belong to `free`.
    """

    init: Callable[[PyTree], PyTree]
    step: Callable[[PyTree, PyTree, Array, PyTree], tuple[PyTree, PyTree]]


# (View, Candidate) -> (upload of the candidate, upload observed): gradients, or changes
Simulation: TypeAlias = Callable[[View, Candidate], tuple[PyTree, PyTree]]
Objective: TypeAlias = Callable[[PyTree, PyTree], Array]
# (View, Candidate, share of the steps that are made [] in [0, 1)) -> penalty []
Prior: TypeAlias = Callable[[View, Candidate, Array], Array]
RESTARTS = "restarts"  # axis over which one restart can see the others
UNKNOWN = -1  # a label of which the upload says nothing
END = 20  # the last twentieth of the steps is the end of a search


class _Best(NamedTuple):
    free: PyTree
    total: Array  # objective + the last step's prior: what candidates are compared by
    matching: Array  # objective alone


def labels_of(targets: Array) -> Array:
    """Takes the likeliest labels [B] int32 of targets [B, Kc]; of NaN, `UNKNOWN`."""
    known = jnp.all(jnp.isfinite(targets), axis=-1)
    return jnp.where(known, jnp.argmax(targets, axis=-1), UNKNOWN).astype(jnp.int32)


def no_prior(view: View, candidate: Candidate, progress: Array) -> Array:
    """Prefers nothing."""
    del view, candidate, progress
    return jnp.zeros(())


def iterative(
    unknowns: Unknowns,
    simulation: Simulation,
    objective: Objective,
    optimiser: Optimiser,
    *,
    prior: Prior = no_prior,
    steps: int,
    restarts: int = 1,
    choose_by_matching: bool = False,
    points: int | None = None,
) -> Attack:
    """Composes an iterative attack.

    Args:
      unknowns: what is looked for.
      simulation: what gradient a candidate gives.
      objective: distance of simulated and observed gradient.
      optimiser: how to move.
      prior: added to the objective. Iterates, and restarts, are compared with the
        prior of the last step, whatever it was when they were met.
      steps: evaluations per restart.
      restarts: R independent starts; the one with the lowest own loss is returned.
        With several, they run on the axis `RESTARTS`, where a prior may compare
        them. Such a prior holds an iterate against the others' iterates of the same
        step, and the restarts' best candidates against each other.
      choose_by_matching: whether restarts are compared by the matching loss of their
        best candidates, without the prior; iterates always are with it.
      points: the matching loss of the best candidate so far is recorded this many
        times, evenly; None for as many, at most 20, as divide the steps.

    Returns:
      The attack. Its ``info`` has ``losses`` [points], ``lock`` (the lock part of the
      best candidate), ``restart_losses`` [R] and ``evaluations`` (R x steps). An
      upload of nothing but zeros has no image in it: what comes back is not `finite`.

    Raises:
      ValueError: if steps, restarts or points are below 1, or `points` does not
        divide `steps`; and from the attack, where a tensor of the upload does not have
        the shape that the network's has, and where several restarts would start alike,
        because no unknown draws its start.
    """
    if points is None:
        points = next((n for n in range(20, 0, -1) if steps % n == 0), 1)
    if min(steps, restarts, points) < 1 or steps % points:
        raise ValueError(
            f"steps={steps}, restarts={restarts} and points={points} must be at least "
            "1, and points must divide steps"
        )

    last = (steps - 1) / steps  # progress at the last step

    def begin(rngs: Sequence[Rng], view: View) -> list[tuple[PyTree, PyTree]]:
        pairs = zip(unknowns, rngs, strict=True)
        return [part.start(rng, view) for part, rng in pairs]

    def run(rng: Rng, view: View) -> tuple[Candidate, _Best, Array, Array]:
        starts = begin([jax.random.fold_in(rng, i) for i in range(len(unknowns))], view)
        first = tuple(free for free, _ in starts)
        fixed = tuple(value for _, value in starts)

        def decode(free: PyTree) -> Candidate:
            parts = zip(unknowns, free, fixed, strict=True)
            return Candidate(*(part.decode(z, known) for part, z, known in parts))

        believed = trace_dependence(lambda p: prior(view, decode(first), p), last)

        def total(free: PyTree, progress: Array) -> tuple[Array, tuple[Array, Array]]:
            candidate = decode(free)
            simulated, observed = simulation(view, candidate)
            _check_alike(simulated, observed)
            matching = objective(simulated, observed)
            if not believed.on_argument:
                value = matching + prior(view, candidate, progress)
                return value, (value, matching)
            # Mapped, whatever in a prior does not depend on progress is made once.
            now, then = jax.vmap(lambda p: prior(view, candidate, p))(
                jnp.stack([progress, jnp.asarray(last, progress.dtype)])
            )
            return matching + now, (matching + then, matching)

        evaluate = jax.value_and_grad(total, has_aux=True)

        def step(carry, number):
            free, state, best, sound = carry
            (value, compared), grads = evaluate(free, number / steps)
            sound = jnp.where(jnp.isfinite(value), number, sound)
            new = _Best(free, *compared)
            # NaN compares as false: a broken iterate is never the best one.
            better = new.total < best.total
            best = jax.tree.map(lambda a, b: jnp.where(better, a, b), new, best)
            free, state = optimiser.step(free, state, value, grads)
            free = tuple(
                part.project(z) for part, z in zip(unknowns, free, strict=True)
            )
            return (free, state, best, sound), None

        def segment(carry, numbers):
            carry, _ = jax.lax.scan(step, carry, numbers)
            return carry, carry[2].matching

        worst = jnp.full((), jnp.inf)
        carry = (first, optimiser.init(first), _Best(first, worst, worst), -1)
        carry = jax.tree.map(jnp.asarray, carry)
        numbers = jnp.arange(steps).reshape(points, -1)
        (_, _, best, sound), losses = jax.lax.scan(segment, carry, numbers)
        # A line search may try what is not finite, and come back; a broken descent does
        # not. So the end alone says whether it broke.
        finite = sound >= steps - max(1, steps // END)
        found = decode(best.free)
        if RESTARTS in believed.on_axes and not choose_by_matching:
            # The best candidates were met at different steps, among other iterates.
            value = best.matching + prior(view, found, jnp.asarray(last))
            value = jnp.where(jnp.isfinite(value), value, best.total)
            best = best._replace(total=value)
        parts = zip(unknowns, found, fixed, strict=True)
        found = Candidate(*(part.read(value, known) for part, value, known in parts))
        return found, best, finite, losses

    def attack(rng: Rng, view: View) -> Reconstruction:
        def restart(index: Array):
            return run(jax.random.fold_in(rng, index), view)

        rngs = [rng] * len(unknowns)
        if (
            restarts > 1
            and not trace_dependence(lambda rngs: begin(rngs, view), rngs).on_argument
        ):
            raise ValueError(
                f"restarts={restarts} would all start alike: nothing in this attack's "
                "start is drawn at random; take restarts=1, or another start"
            )
        indices = jnp.arange(restarts)
        if restarts == 1:
            # An axis of length 1 is not free: XLA compiles it twice as long.
            runs = jax.tree.map(lambda x: x[None], restart(indices[0]))
        else:
            runs = jax.vmap(restart, axis_name=RESTARTS)(indices)
        own = runs[1].matching if choose_by_matching else runs[1].total
        chosen = jnp.argmin(own)
        candidate, best, finite, losses = jax.tree.map(lambda x: x[chosen], runs)
        return Reconstruction(
            images=candidate.images,
            labels=labels_of(candidate.targets),
            loss=best.matching,
            finite=finite & jnp.isfinite(best.matching) & _says_something(view.grads),
            info={
                "losses": losses,
                "lock": candidate.lock,
                "restart_losses": runs[1].matching,
                "evaluations": jnp.asarray(restarts * steps),
            },
        )

    return attack


def _check_alike(simulated: PyTree, observed: PyTree) -> None:
    """Refuses an upload that is not of the network it is held against.

    Left alone, shapes that broadcast would be compared.
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


def _says_something(grads: PyTree) -> Array:
    """Tells whether an upload is anything but zeros; NaN is something."""
    return jnp.stack([jnp.any(leaf != 0) for leaf in jax.tree.leaves(grads)]).any()
