"""What an attack is built on: the task, the threat, the defence, the attacker's means.

All of it is known before any upload is seen, and the same for all victims of an arm.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from kljax.core.denoiser import Denoiser
from kljax.core.generator import Generator
from kljax.core.inputs import InputSpec
from kljax.core.language_model import LanguageModel
from kljax.core.targets import TargetSpec
from kljax.core.types import (
    Array,
    Gates,
    Loss,
    Model,
    Path,
    Private,
    Public,
    PyTree,
    Rng,
)
from kljax.models.chain import Layer
from kljax.threat import ThreatModel, as_sent


class Task(NamedTuple):
    """What everybody knows of the network and of the data.

    Attributes:
      model: the network.
      loss: the clients' training loss.
      inputs: what the network takes in, and where it is looked for.
      targets: what the network is trained towards, and how that is looked for.
      classifier: path of the last dense layer, from which labels are read.
      chain: the network's layers in forward order, where they simply follow each
        other; () where they do not.
      feeds: (site, the layer with a kernel whose output the site takes in), where that
        is known (`kljax.models.feeding_layers`).
    """

    model: Model
    loss: Loss
    inputs: InputSpec
    targets: TargetSpec
    classifier: str
    chain: tuple[Layer, ...] = ()
    feeds: tuple[tuple[Path, Path], ...] = ()

    @property
    def num_classes(self) -> int:
        """Gives Kc, to what is made for classes alone.

        Raises:
          ValueError: for targets of another kind.
        """
        return self.targets.require_classes("what reads classes off an upload")

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


class AssumedDefence(NamedTuple):
    """What an attacker assumes the defence in force to do.

    Attributes:
      gates: ``(public, Private) -> gates``.
      simulate: ``(grads, sent, earlier, private) -> grads``, what it does to a
        gradient, given what is seen (`View.grads`, `View.earlier`) and what is taken
        for the client's `Private` (`Candidate.secret`). Of a local step nobody sees
        anything, and the first two are None.
      simulate_update: the same of what it does to a whole change.
      sites: (path, channels) of every gated layer, in chain order.
      draw_gates: ``rng -> gates`` of somebody who has just initialised the same lock
        and drawn a private key: what everybody can simulate. None where there is none.
      draw_private: ``rng -> Private``, what a client with as many examples draws anew
        in each step, as everybody can simulate; None where it draws nothing.
      log_prob: ``(seen, simulated) -> []``, the log-density of what is uploaded, given
        what simulation makes of the client's gradient or change; None where there is
        none.
      simulate_example: ``grads -> grads``, what it does to the gradient of each example
        before the mean is taken over them; None where no example is looked at alone.
      simulate_inputs: ``(public, stats, images, targets, gradient, private) ->
        (images, targets)``, what it trains on in place of a batch;
        ``gradient(images, targets)`` gives something with ``public`` and ``logits``,
        and ``private`` is what is taken for the client's `Private`. None for the batch
        itself.
    """

    gates: Callable[..., Any]
    simulate: Callable[..., Any] = as_sent
    simulate_update: Callable[..., Any] = as_sent
    sites: tuple[tuple[Path, int], ...] = ()
    draw_gates: Callable[[Rng], Gates] | None = None
    draw_private: Callable[[Rng], Private] | None = None
    log_prob: Callable[[Public, Public], Array] | None = None
    simulate_example: Callable[[Public], Public] | None = None
    simulate_inputs: Callable[..., tuple[Array, Array]] | None = None

    @property
    def leaves_alone(self) -> bool:
        """Tells whether what is sent is taken for what was computed."""
        alone = self.simulate_example is None
        return alone and self.simulate is self.simulate_update is as_sent


class Attacker(NamedTuple):
    """What an attacker brings along, whatever the protocol and the defence are.

    Attributes:
      label_rule: how labels are recovered, where they are: ``auto`` or a name in
        `kljax.attacks.labels.RULES`.
      features: weight of the classifier's input as a term of its own
        (`kljax.attacks.priors.with_feature`); 0 for none.
      generator: trained on public images; None for none.
      language_model: trained on public sentences; None for none.
      denoiser: trained on public images; None for none.
      learned: what an attack that learns (`kljax.attacks.presets.Preset.learn`) has
        learned of uploads that it simulated; None before.
    """

    label_rule: str = "auto"
    features: float = 0.0
    generator: Generator | None = None
    language_model: LanguageModel | None = None
    denoiser: Denoiser | None = None
    learned: PyTree = None


class Setting(NamedTuple):
    """What an attack is built on.

    Attributes:
      task: the network and the data.
      threat: what the attacker knows and does.
      defence: what the attacker assumes of the defence in force.
      protocol: of an upload after several local steps; None for one step's gradient.
      attacker: what the attacker brings along.
      snapshots: of what a search has found on the way, to be kept at most; no result
        depends on them. Attacks without a search keep none.
    """

    task: Task
    threat: ThreatModel
    defence: AssumedDefence
    protocol: Protocol | None = None
    attacker: Attacker = Attacker()
    snapshots: int = 0

    @property
    def sees_gradient(self) -> bool:
        """Tells whether what is seen is a gradient, of one client or of several."""
        upload = self.threat.knowledge.upload
        return upload == "gradient" or (upload == "average" and self.protocol is None)

    def __getattr__(self, name: str):
        """Says in which part a field is."""
        for part in ("task", "defence", "attacker"):
            if hasattr(_PARTS[part], name) and not name.startswith("_"):
                raise AttributeError(f"setting.{name} is setting.{part}.{name}")
        raise AttributeError(f"a Setting has no {name!r}")


def of_one_client(setting: Setting, clients: int | None = None) -> Setting:
    """Gives the setting of one client's upload, of whom the average of K is seen.

    Of the upload of one of several nobody sees anything, and its defence is simulated
    without it, as that of a local step is.

    Args:
      setting: of the average.
      clients: who share the examples; None for K, and 1 for one that has them all.

    Raises:
      ValueError: for examples that are no whole number for each client.
    """
    knows, defence = setting.threat.knowledge, setting.defence
    clients = knows.clients if clients is None else clients
    if knows.examples % clients:
        raise ValueError(
            f"an average of {clients} clients has {knows.examples} examples, no whole "
            "number for each: its clients cannot be replayed one by one"
        )
    knowledge = dataclasses.replace(
        knows,
        upload="gradient" if setting.protocol is None else "update",
        examples=knows.examples // clients,
        clients=1,
    )
    return setting._replace(
        threat=dataclasses.replace(setting.threat, knowledge=knowledge),
        defence=defence._replace(
            simulate=_unseen(defence.simulate),
            simulate_update=_unseen(defence.simulate_update),
        ),
    )


def _unseen(simulate: Callable[..., Any]) -> Callable[..., Any]:
    """Makes what a defence does to an upload of which nothing is seen."""
    if simulate is as_sent:
        return as_sent
    return lambda grads, sent, earlier, private: simulate(grads, None, None, private)


_PARTS = {"task": Task, "defence": AssumedDefence, "attacker": Attacker}
