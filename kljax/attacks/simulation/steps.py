"""Steps: the client's own training, replayed at a candidate."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kljax.attacks.attack import Candidate, Simulation
from kljax.attacks.setting import Protocol, Setting
from kljax.attacks.simulation.averages import replay_average
from kljax.attacks.simulation.by_example import mean_over_examples
from kljax.attacks.visibility import comparable
from kljax.core.randomness import fixed_rng
from kljax.core.trees import named
from kljax.core.types import Array, Private, Public, PyTree
from kljax.threat import View


def replay(setting: Setting, gates: Callable[..., Any]) -> Simulation:
    """Makes the simulation of what the threat model says is uploaded.

    Args:
      setting: its protocol says how clients train, where they upload updates.
      gates: ``(public, Candidate.secret) -> gates`` of the secret's strategy.

    Raises:
      ValueError: for an update without a protocol, or a gradient with one.
    """
    upload, protocol = setting.threat.knowledge.upload, setting.protocol
    if upload == "average":
        return replay_average(setting, lambda one: replay(one, gates))
    if (upload == "gradient") != (protocol is None):
        given = "no protocol" if protocol is None else "a protocol"
        raise ValueError(
            f"the threat model says upload={upload!r}, and the setting has {given}: an "
            "update needs the protocol of its steps, a gradient has none"
        )
    if protocol is None:
        return one_step(setting, gates)
    return local_steps(
        setting,
        gates,
        optimiser=protocol.optimiser,
        steps=protocol.steps,
        batch=protocol.batch,
        penalty=protocol.penalty,
        unit=protocol.learning_rate * protocol.steps,
    )


def one_step(setting: Setting, gates: Callable[..., Any]) -> Simulation:
    """Replays one client step at the candidate.

    Args:
      setting: model, loss, norm mode and what the defence does to a gradient.
      gates: ``(public, Candidate.secret) -> gates`` of the secret's strategy.

    Returns:
      ``(View, Candidate) -> (simulated, observed)``: two trees alike, the public
      gradient as far as it is visible (`comparable`), and the lock gradients too
      where they are shared and the candidate has lock weights of its own.
    """
    train = setting.threat.knowledge.attacker_norm == "train"

    def simulation(view: View, candidate: Candidate):
        secret = candidate.secret
        with_secret = view.lock_grads is not None and _is_trained(secret)

        def forward(index, public: Public, own: PyTree, images: Array):
            return setting.task.model.apply(
                public.model,
                view.stats,
                images,
                gates=gates(public.defence, own),
                train=train,
                # The victim's dropout masks are unknown: one fixed guess.
                rngs=jax.random.fold_in(fixed_rng("dropout"), index),
            )

        def of_batch(index, own: PyTree, images: Array, targets: Array):
            def objective(public: Public, trainable):
                guess = own._replace(trainable=trainable) if with_secret else own
                out = forward(index, public, guess, images)
                return setting.task.loss(out.logits, targets) + out.added_loss

            if not with_secret:
                return (jax.grad(objective)(view.public, ()),), ()
            start = view.public, secret.trainable
            return jax.grad(objective, argnums=(0, 1))(*start), ()

        def gradient(images: Array, targets: Array) -> _Gradient:
            (public, *trainable), _ = mean_over_examples(
                setting.defence, of_batch, 0, secret, images, targets
            )
            logits = None
            if setting.defence.simulate_inputs is not None:
                logits = forward(0, view.public, secret, images).logits
            return _Gradient(public, trainable[0] if trainable else (), logits)

        batch = candidate.inputs, candidate.targets
        if setting.defence.simulate_inputs is not None:
            batch = setting.defence.simulate_inputs(
                view.public, view.stats, *batch, gradient, secret
            )
        grads, lock_grads, _ = gradient(*batch)
        simulated = setting.defence.simulate(grads, view.grads, view.earlier, secret)
        simulated, observed = compared(setting, view, simulated)
        if not with_secret:
            return simulated, observed
        return (simulated, lock_grads), (observed, view.lock_grads)

    return simulation


class _Gradient(NamedTuple):
    """What one step of a client gives, as a defence's inputs know it."""

    public: Public
    trainable: PyTree
    logits: Array | None  # of a batch taken whole; None where nobody replaces inputs


def compared(setting: Setting, view: View, simulated: Public) -> tuple[Public, Public]:
    """Pairs what is compared of a simulated upload and of the one observed.

    Of what is visible, without the tensors of which a candidate says nothing
    (`SearchSpace`), and those that the strategy about the secret leaves out.

    Raises:
      ValueError: if that leaves nothing out of which an input could be found.
    """
    mine, theirs = comparable(view, simulated)
    missing = setting.task.inputs.search.unexplained
    omits = setting.threat.about_secret.omits
    if omits is not None:
        mine, theirs = (_without(omits, grads) for grads in (mine, theirs))
    if not missing:
        return mine, theirs

    def explained(grads: Public) -> Public:
        kept = {name: leaf for name, leaf in grads.model.items() if name not in missing}
        return grads._replace(model=kept)

    return explained(mine), explained(theirs)


def _without(omits: Callable[[str], bool], grads: Public) -> Public:
    """Leaves tensors out, by their names; of a defence's, what is left is a list."""
    model = {
        name: leaf for name, leaf in grads.model.items() if not omits(f"model/{name}")
    }
    defence = named(Public((), grads.defence))
    kept = tuple(leaf for name, leaf in defence.items() if not omits(name))
    if not model and not kept:
        raise ValueError(
            "the strategy about the secret leaves out the gradients of all layers, and "
            "nothing is left to compare: take another"
        )
    return Public(model, grads.defence if len(kept) == len(defence) else kept)


def local_steps(
    setting: Setting,
    gates: Callable[..., Any],
    *,
    optimiser: optax.GradientTransformation,
    steps: int,
    batch: int,
    penalty: Callable[[Public, Public], Array] | None = None,
    unit: float = 1.0,
    rematerialise: bool = True,
) -> Simulation:
    """Replays the local training of one client at the candidate, differentiably.

    The candidate's n images are cut into batches of B, in order; step t takes batch t,
    and after the last batch comes the first again, for as many epochs as T steps are.
    Public parameters are trained from the received ones. Lock weights, where the
    candidate has any, are trained along with them, as the client does; guessed gates
    stay what they are over all steps. A candidate may have n images for every epoch:
    it is gone through in order, too.

    Guarantees: at the client's own images, labels and private part, in its order, it
    gives the client's change up to rounding, where the client's optimiser started
    anew, too, and noise apart. A momentum that the client kept from earlier rounds is
    not known here.

    Args:
      setting: model, loss, norm mode and what the defence does to the gradient of each
        step, and to the whole update.
      gates: ``(public, Candidate.secret) -> gates`` of the secret's strategy.
      optimiser: of the client. Its update must have a derivative wherever a gradient
        may be 0: Adam's has none there without ``eps_root``, and gives NaN.
      steps: T.
      batch: B; it divides the number of examples of the threat model.
      penalty: ``(Public now, Public received) -> []``, added to the client's loss.
      unit: both changes are divided by it, see `Protocol.learning_rate`.
      rematerialise: whether the activations of a step are computed again on the way
        back instead of being kept: memory then holds one step's, and T parameters
        (speed and memory only).

    Returns:
      ``(View, Candidate) -> (simulated, observed)``: two trees alike, the public
      change as far as it is visible (`comparable`), and that of the lock weights too
      where it is shared and the candidate has lock weights of its own.

    Raises:
      ValueError: if T or B is below 1, or B does not divide the number of examples.

    Reference: Geiping et al., "Inverting Gradients" (NeurIPS 2020), section 6, and
    its code, reconstruction_algorithms.py (FedAvgReconstructor).
    """
    examples = setting.threat.knowledge.examples
    if min(steps, batch) < 1 or examples % batch:
        raise ValueError(
            f"steps={steps} and batch={batch} must be at least 1, and batch must "
            f"divide the {examples} examples of the threat model"
        )

    def simulation(view: View, candidate: Candidate):
        replayed = local_replay(setting, gates, view, candidate, penalty, unit)
        count = jax.tree.leaves(candidate.inputs)[0].shape[0]
        order = np.arange(steps * batch) % count

        def cut(values: PyTree) -> PyTree:
            return jax.tree.map(lambda x: _cut(x[order], steps), values)

        def step(carry, inputs):
            now, stats, memory = carry
            grads, stats = replayed.gradient(now, stats, *inputs)
            moves, memory = optimiser.update(grads, memory, now)
            return (optax.apply_updates(now, moves), stats, memory), None

        inputs = (
            jnp.arange(steps),
            cut(replayed.inputs),
            cut(candidate.targets),
        )
        if rematerialise:
            # Inside a scan nothing can be merged with the forward pass anyway.
            step = jax.checkpoint(step, prevent_cse=False)
        start = replayed.start
        (trained, _, _), _ = jax.lax.scan(
            step, (start, view.stats, optimiser.init(start)), inputs
        )
        return replayed.compare(trained)

    return simulation


class LocalReplay(NamedTuple):
    """One client's training at a guessed secret, step by step.

    Attributes:
      start: what is trained, before the first step: the public parameters, the lock
        weights where the candidate has any, and the candidate's inputs where they stand
        for parameters (`SearchSpace.trained`).
      inputs: [n, ...] of the candidate, as `gradient` takes them.
      gradient: ``(now, stats, index [] of the step, inputs, targets) -> (grads,
        stats)``.
      compare: ``trained -> (simulated, observed)``, in the unit asked for.
      compare_changes: the same of the changes of the first two of what is trained.
    """

    start: tuple[PyTree, ...]
    inputs: PyTree
    gradient: Callable[..., tuple[PyTree, PyTree]]
    compare: Callable[[tuple[PyTree, ...]], tuple[PyTree, PyTree]]
    compare_changes: Callable[[tuple[PyTree, PyTree]], tuple[PyTree, PyTree]]


def local_replay(
    setting: Setting,
    gates: Callable[..., Any],
    view: View,
    candidate: Candidate,
    penalty: Callable[[Public, Public], Array] | None,
    unit: float,
) -> LocalReplay:
    """Makes the parts that every replay of local training needs.

    Args:
      setting, gates, penalty, unit: see `local_steps`.
      view: what was received, and what came back.
      candidate: whose training it is.
    """
    secret = candidate.secret
    if setting.defence.simulate_inputs is not None:
        raise ValueError(
            "inputs that are replaced in each step of a local training are not "
            "simulated: attack upload='gradient'"
        )
    train = setting.threat.knowledge.attacker_norm == "train"
    trained_too = _is_trained(secret)
    simulate = setting.defence.simulate

    def with_weights(trainable: PyTree, own: PyTree = secret) -> PyTree:
        return own._replace(trainable=trainable) if trained_too else own

    start = (view.public, secret.trainable if trained_too else ())
    inputs = candidate.inputs
    # Real tokens are looked up in the table that is trained.
    moves = setting.task.inputs.search.trained and _is_floating(inputs)
    if moves:
        start = (*start, inputs)
        inputs = jnp.arange(inputs.shape[0])

    def gradient(now, stats, index: Array, inputs: PyTree, targets: Array):
        def of_batch(place: Array, own: PyTree, inputs: PyTree, targets: Array):
            def objective(public: Public, trainable, *fed: Array):
                out = setting.task.model.apply(
                    public.model,
                    stats,
                    fed[0][inputs] if moves else inputs,
                    gates=gates(public.defence, with_weights(trainable, own)),
                    train=train,
                    # The victim's dropout masks are unknown: one fixed guess.
                    rngs=jax.random.fold_in(fixed_rng("dropout"), place),
                )
                value = setting.task.loss(out.logits, targets) + out.added_loss
                return value, out.stats

            places = tuple(range(len(now)))
            return jax.grad(objective, argnums=places, has_aux=True)(*now)

        grads, stats = mean_over_examples(
            setting.defence, of_batch, index, secret, inputs, targets
        )
        pulled = grads[0]
        if penalty is not None:  # nothing is done to the pull of single examples
            pull = jax.grad(penalty)(now[0], view.public)
            pulled = jax.tree.map(jnp.add, pulled, pull)
        sent = simulate(pulled, None, None, with_weights(now[1]))
        return (sent, *grads[1:]), stats

    def compare(trained):
        changes = jax.tree.map(jnp.subtract, trained[:2], start[:2])
        return held_against(changes, trained[1])

    def compare_changes(changes):
        return held_against(changes, jax.tree.map(jnp.add, start[1], changes[1]))

    def held_against(changes, trainable):
        change, lock_change = changes
        simulated = setting.defence.simulate_update(
            change, view.grads, view.earlier, with_weights(trainable)
        )
        simulated, observed = compared(setting, view, simulated)
        if trained_too and view.lock_grads is not None:
            simulated = (simulated, lock_change)
            observed = (observed, view.lock_grads)
        return jax.tree.map(lambda x: x / unit, (simulated, observed))

    return LocalReplay(start, inputs, gradient, compare, compare_changes)


def move_by_gradient(
    protocol: Protocol, start: tuple[Public, PyTree], gradient: float
) -> tuple[Public, PyTree]:
    """Computes what a client's optimiser makes of one and the same gradient.

    For methods that are affine in the gradient and start anew, the change under a
    gradient of 0 (weight decay) is what an update has beside its gradients.

    Args:
      protocol: of the clients.
      start: the public parameters, and the lock weights or ().
      gradient: every entry of it, in every step.

    Returns:
      The change, like `start`.
    """
    grads = jax.tree.map(lambda x: jnp.full_like(x, gradient), start)

    def step(carry, _):
        now, memory = carry
        moves, memory = protocol.optimiser.update(grads, memory, now)
        return (optax.apply_updates(now, moves), memory), None

    carry = (start, protocol.optimiser.init(start))
    (now, _), _ = jax.lax.scan(step, carry, length=protocol.steps)
    return jax.tree.map(jnp.subtract, now, start)


def _is_floating(inputs: PyTree) -> bool:
    leaves = jax.tree.leaves(inputs)
    return all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves)


def _is_trained(secret: PyTree) -> bool:
    """Tells whether the secret of a candidate has weights that a client would train."""
    return isinstance(secret, Private) and bool(jax.tree.leaves(secret.trainable))


def _cut(values: Array, steps: int) -> Array:
    return values.reshape(steps, -1, *values.shape[1:])
