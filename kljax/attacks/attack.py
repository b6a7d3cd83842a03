"""What an attack is, and what a search for images is composed of.

An attack is a function ``(rng, View) -> Reconstruction`` for one victim. A search is
composed: *unknowns* (what is looked for, with a decoder each) x *simulation* (the
gradient a candidate would give) x *objective* (distance to the observed one) x *prior*
x *optimiser* x *start*. `kljax.attacks.drivers` own the loops.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from kljax.core.generator import Generator
from kljax.core.inputs import InputSpec
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
    """What everybody knows about the protocol, and an attack is built on.

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
      generator: that the attacker has trained on public images; None for none.
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
    generator: Generator | None = None

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
    info: dict[str, Any] = {}  # for humans: "losses" [points], "secret", ...
    numbers: dict[str, Array] = {}  # column of the rows -> [], such as "evaluations"


Attack: TypeAlias = Callable[[Rng, View], Reconstruction]


class Candidate(NamedTuple):
    """One guess at everything that the gradient depends on."""

    images: Array  # [B, H, W, C], or what a network is fed in place of other inputs
    targets: Array  # [B, Kc]
    secret: PyTree  # what the defence hides, as the strategy about it has it


class Unknown(NamedTuple):
    """One part of the candidate.

    Attributes:
      start: ``(rng, View) -> (free, fixed)``: what is optimised, and what is not.
      decode: ``(free, fixed) -> value`` of that part.
      project: ``free -> free``, after every move: back to what is allowed.
      read: ``(value, fixed) -> value``, of what is found in the end: a token, where
        embeddings were looked for.
      penalty: ``free -> []``, added to the objective as a prior is: how unlikely what
        is looked for is, whatever becomes of it; None for nothing.
    """

    start: Callable[[Rng, View], tuple[PyTree, PyTree]]
    decode: Callable[[PyTree, PyTree], PyTree]
    project: Callable[[PyTree], PyTree] = lambda free: free
    read: Callable[[PyTree, PyTree], PyTree] = lambda value, fixed: value
    penalty: Callable[[PyTree], Array] | None = None


class Unknowns(NamedTuple):
    """The parts of a `Candidate`, each an `Unknown`."""

    images: Unknown
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


# (View, Candidate) -> (upload of the candidate, upload observed): gradients, or changes
Simulation: TypeAlias = Callable[[View, Candidate], tuple[PyTree, PyTree]]
Objective: TypeAlias = Callable[[PyTree, PyTree], Array]
# (View, Candidate, share of the steps that are made [] in [0, 1)) -> penalty []
Prior: TypeAlias = Callable[[View, Candidate, Array], Array]
RESTARTS = "restarts"  # axis over which one restart can see the others
UNKNOWN = -1  # a label of which the upload says nothing


def labels_of(targets: Array) -> Array:
    """Takes the likeliest labels [B] int32 of targets [B, Kc]; of NaN, `UNKNOWN`."""
    known = jnp.all(jnp.isfinite(targets), axis=-1)
    return jnp.where(known, jnp.argmax(targets, axis=-1), UNKNOWN).astype(jnp.int32)


def no_prior(view: View, candidate: Candidate, progress: Array) -> Array:
    """Prefers nothing."""
    del view, candidate, progress
    return jnp.zeros(())
