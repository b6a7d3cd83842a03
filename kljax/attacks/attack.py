"""What an attack is, and what a search for images is composed of.

An attack is a function ``(rng, View) -> Reconstruction`` for one victim. A search is
composed: *unknowns* (what is looked for, with a decoder each) x *simulation* (the
gradient a candidate would give) x *objective* (distance to the observed one) x *prior*
x *optimiser* x *start*. `kljax.attacks.drivers` own the loops.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
from jax.typing import ArrayLike

from kljax.core.types import Array, PyTree, Rng
from kljax.threat import View


class Reconstruction(NamedTuple):
    """What an attack gives back for one victim.

    The best candidate by the attacker's own loss, over iterates and restarts.
    """

    inputs: PyTree  # [B, ...] as a dataset has them: of images [B, H, W, C]
    # [B] int32, or other targets as a dataset has them; `UNKNOWN` where nothing told
    labels: Array
    loss: Array  # [] matching loss of this candidate, without priors
    finite: Array  # [] bool: something was there to match, and the search did not break
    info: dict[str, Any] = {}  # for humans: "losses" [points], "secret", ...
    numbers: dict[str, Array] = {}  # column of the rows -> [], such as "evaluations"

    @property
    def images(self) -> Array:
        """Raises AttributeError: what is found need not be images."""
        raise AttributeError("Reconstruction.images is Reconstruction.inputs")


Attack: TypeAlias = Callable[[Rng, View], Reconstruction]


class Candidate(NamedTuple):
    """One guess at everything that the gradient depends on."""

    inputs: PyTree  # [B, H, W, C] of images, or what a network is fed in their place
    targets: Array  # [B, Kc], or others of `kljax.core.targets`
    secret: PyTree  # what the defence hides, as the strategy about it has it


class Unknown(NamedTuple):
    """One part of the candidate.

    Attributes:
      start: ``(rng, View) -> (free, fixed)``: what is optimised, and what is not.
      decode: ``(free, fixed) -> value`` of that part.
      project: ``free -> free``, after every move: back to what is allowed.
      read: ``(value, fixed) -> value``, of what is found in the end: a token, where
        embeddings were looked for; a label, where probabilities were.
      penalty: ``free -> []``, added to the objective as a prior is: how unlikely what
        is looked for is, whatever becomes of it; None for nothing.
      report: ``(free, fixed) -> {name: value}``, of what is found in the end: more of
        it for the ``info`` of a reconstruction; None for nothing.
      told: of inputs, whether they depend on the targets at the start: then `start` is
        ``(rng, View, targets [B, ...]) -> (free, fixed)``.
    """

    start: Callable[..., tuple[PyTree, PyTree]]
    decode: Callable[[PyTree, PyTree], PyTree]
    project: Callable[[PyTree], PyTree] = lambda free: free
    read: Callable[[PyTree, PyTree], PyTree] = lambda value, fixed: value
    penalty: Callable[[PyTree], Array] | None = None
    report: Callable[[PyTree, PyTree], dict[str, Any]] | None = None
    told: bool = False


class Unknowns(NamedTuple):
    """The parts of a `Candidate`, each an `Unknown`."""

    inputs: Unknown
    targets: Unknown
    secret: Unknown


class Optimiser(NamedTuple):
    """A descent method that is told a value and a gradient, and moves once.

    Attributes:
      init: ``free -> state``.
      step: ``(free, state, value [], grads) -> (free, state)``; `value` and `grads`
        belong to `free`.
    """

    init: Callable[[PyTree], PyTree]
    step: Callable[[PyTree, PyTree, Array, PyTree], tuple[PyTree, PyTree]]


class Evolution(NamedTuple):
    """A search that asks for the values of a population of vectors, and is told them.

    Every call has a random key of its own. Values that are not finite are told as
    infinite.

    Attributes:
      population: P candidates in one generation.
      init: ``(rng, start [n]) -> state``.
      ask: ``(rng, state) -> (candidates [P, n], state)``.
      tell: ``(rng, candidates [P, n], values [P], state) -> state``; low is good.
    """

    population: int
    init: Callable[[Rng, Array], PyTree]
    ask: Callable[[Rng, PyTree], tuple[Array, PyTree]]
    tell: Callable[[Rng, Array, Array, PyTree], PyTree]


class Judge(NamedTuple):
    """What a move that follows no gradient may ask, see `Moves`.

    Attributes:
      decode: ``free -> Candidate``.
      matching: ``free -> []``, the objective at a candidate, by one gradient of the
        network; whatever is not finite is infinite.
    """

    decode: Callable[[PyTree], Candidate]
    matching: Callable[[PyTree], Array]


# (rng, View, Judge, free) -> free
Move: TypeAlias = Callable[[Rng, View, Judge, PyTree], PyTree]


class Moves(NamedTuple):
    """Moves that a descent makes beside those along the gradient.

    Attributes:
      first: from the start, before the first step.
      between: after every `every` steps, but for the last, once `after` of all steps
        are made; None for none.
      every: 1 or more.
      after: share of the steps, in [0, 1].
    """

    first: Move
    between: Move | None = None
    every: int = 1
    after: float = 0.0

    def due(self, number: ArrayLike, steps: int) -> Array:
        """Tells [] bool whether moves follow step `number`, from 0.

        It depends on the number alone, so that victims side by side do not make both
        branches run.
        """
        now = (number + 1) % self.every == 0
        return now & (number >= self.after * steps) & (number < steps - 1)


# (View, Candidate) -> (upload of the candidate, upload observed): gradients, or changes
Simulation: TypeAlias = Callable[[View, Candidate], tuple[PyTree, PyTree]]
Objective: TypeAlias = Callable[[PyTree, PyTree], Array]
# (View, Candidate, share of the steps that are made [] in [0, 1)) -> penalty []
Prior: TypeAlias = Callable[[View, Candidate, Array], Array]
# (candidates of R restarts, with a leading axis [R]; their own losses [R]; the one that
# is lowest) -> (candidate, "numbers" of the reconstruction, "info" of it)
Pool: TypeAlias = Callable[
    [Candidate, Array, Array], tuple[Candidate, dict[str, Array], dict[str, Any]]
]


class Search(NamedTuple):
    """What a search is composed of, but for what moves it."""

    unknowns: Unknowns
    simulation: Simulation
    objective: Objective
    prior: Prior


RESTARTS = "restarts"  # axis over which one restart can see the others


def no_prior(view: View, candidate: Candidate, progress: Array) -> Array:
    """Prefers nothing."""
    del view, candidate, progress
    return jnp.zeros(())
