"""Local training: the steps that a client makes on its own batches in one round.

What goes in, stays with the client, leaves it and is said of it has a tuple each.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from kljax.core.randomness import derive_rng
from kljax.core.targets import TargetSpec, classes_of
from kljax.core.types import (
    Array,
    Augment,
    Loss,
    Model,
    Penalty,
    Private,
    Public,
    PyTree,
    Renew,
    Rng,
    Stats,
)
from kljax.defences import Context, Defence
from kljax.federated.clients.gradient import (
    add_pull,
    local_features,
    local_gradient,
    local_loss,
    visible_of,
)

# What the random key of a round of local training is for.
ROUND_PURPOSES = ("steps", "release", "renewal", "role", "visible", "hardening")
# Of one step of a round.
LOCAL_PURPOSES = ("augmentation", "gradient", "release", "inputs", "private")


class Batches(NamedTuple):
    """What one client trains on in one round."""

    inputs: PyTree  # [T, B, H, W, C] of images in [0, 1], or others
    labels: Array  # [T, B] int32, or other targets as a dataset has them
    valid: Array  # [T] bool: false for steps that only pad a small client


class Remembered(NamedTuple):
    """What the releases of a defence remember."""

    steps: PyTree  # of each gradient
    update: PyTree  # of the whole change


class ClientState(NamedTuple):
    """What stays with a client from round to round; never uploaded."""

    private: Private
    optimiser: PyTree  # optax's state over (Public, Private.trainable)
    release: Remembered


class Upload(NamedTuple):
    """All that leaves a client after local training."""

    delta: Public  # released: trained minus received
    stats: Stats  # norm statistics after the last valid step


class Progress(NamedTuple):
    """How local training went; for humans."""

    loss: Array  # [] mean over valid steps, NaN without any
    # [] share of examples right before the step that used them; of numbers NaN
    accuracy: Array
    finite: Array  # [] bool: everything uploaded is finite


class LocalTraining(NamedTuple):
    """Local training of one client as two pure functions.

    Attributes:
      init: ``(Public, Private) -> ClientState``, before the first round.
      run: ``(rng, round [], Public, stats, ClientState, Batches) -> (Upload,
        ClientState, Progress)``.
      record: the same with the change before anything was done to the whole of it,
        which comes first; for who studies what a release hides.
      visible: ``(rng, Public, stats, ClientState, Batches, sent) -> tree like sent``,
        of bool: what of it a server can read (`Defence.visible`), with the draws of
        that round; None for all.
    """

    init: Callable[[Public, Private], ClientState]
    run: Callable[..., tuple[Upload, ClientState, Progress]]
    record: Callable[..., tuple[Public, Upload, ClientState, Progress]]
    visible: Callable[..., PyTree | None]


# A method, or the method of round r: that is how a schedule counts rounds.
LocalOptimiser: TypeAlias = (
    optax.GradientTransformation | Callable[[Array], optax.GradientTransformation]
)


def local_training(
    model: Model,
    loss: Loss,
    defence: Defence,
    optimiser: LocalOptimiser,
    *,
    augment: Augment | None = None,
    penalty: Penalty | None = None,
    reset_optimiser: bool = False,
    renew: Renew | None = None,
    targets: TargetSpec | None = None,
) -> LocalTraining:
    """Makes the local training of one client: T steps on its own batches.

    Public parameters and trainable private ones are trained together by one
    optimiser, as in the official code of FedKL; only the public part is released.

    Args:
      model: the network, trained with norm layers and dropout in train mode.
      loss: ``(logits, targets [B, Kc]) -> scalar``.
      defence: its gates act in every step, and so does its release: on the public
        gradient, a penalty's pull included, before the optimiser. What it does to an
        update it does once, to the whole change.
      optimiser: an optax transformation, or a function that makes one from the number
        of the round [] (int32, from 0), for schedules that count rounds. Schedules
        inside a transformation count the client's own steps. Methods that evaluate
        the loss themselves (`optax.lbfgs`) are refused by ``run``.
      augment: ``(rng, images [B, H, W, C]) -> images``, before each step.
      penalty: ``(Public now, Public received) -> scalar``, added to the loss; it sees
        no private part (FedProx's proximal term).
      reset_optimiser: whether the optimiser starts anew in every round; kept from
        round to round otherwise, as in FedKL.
      renew: ``(rng, Private) -> Private``, before the first step of every round: what
        a client draws anew, such as its private key.
      targets: what the labels of `Batches` are; None for classes, one per logit.

    Guarantees: a step whose ``valid`` is false changes nothing, so a padded client
    equals the unpadded one (a release of the update that looks at the images in its
    `Context` sees the padding, too); step t draws its randomness from (rng, t). Who
    would keep a NaN or infinity keeps what it had before its first step.

    Reference: McMahan et al., "Communication-Efficient Learning of Deep Networks from
    Decentralized Data" (AISTATS 2017); FedKL, utils/Client.py.
    """
    fixed = isinstance(optimiser, optax.GradientTransformation)
    method = (lambda number: optimiser) if fixed else optimiser

    gradient = local_gradient(model, loss, defence, train=True)
    value = local_loss(model, loss, defence)
    features = local_features(model, defence, train=True)

    def init(public: Public, private: Private) -> ClientState:
        state = method(jnp.zeros((), jnp.int32)).init((public, private.trainable))
        remembered = Remembered(
            defence.init_state(public), defence.update.init_state(public)
        )
        return ClientState(private, state, remembered)

    def record(
        rng: Rng,
        number: Array,
        received: Public,
        stats: Stats,
        state: ClientState,
        batches: Batches,
    ) -> tuple[Public, Upload, ClientState, Progress]:
        rng_steps = derive_rng(rng, ROUND_PURPOSES, "steps")
        kind = targets_of(model, received, stats, batches.inputs, targets)
        state = state._replace(private=renew_private(renew, rng, state.private))
        secret, descent = state.private.secret, method(number)

        def step(carry, inputs):
            (public, trainable), stats, memory, remembered, tally = carry
            index, images, labels = inputs
            rng_local = jax.random.fold_in(rng_steps, index)

            def rng_of(purpose: str) -> Rng:
                return derive_rng(rng_local, LOCAL_PURPOSES, purpose)

            if augment is not None:
                images = augment(rng_of("augmentation"), images)
            private = defence.draw_private(
                rng_of("private"), Private(secret, trainable), labels.shape[0]
            )
            aims = kind.encode(labels)
            at = rng_of("gradient"), public, stats, private
            mine = functools.partial(gradient, *at)
            images, aims = defence.inputs(
                rng_of("inputs"), Context(public, stats, images, aims, mine, private)
            )
            grads = mine(images, aims)
            there = functools.partial(value, stats, private, images, aims)
            down, remembered = defence.release(
                rng_of("release"),
                remembered,
                add_pull(penalty, grads.public, public, received),
                Context(
                    public,
                    stats,
                    images,
                    aims,
                    mine,
                    private,
                    there,
                    functools.partial(features, *at),
                    index,
                ),
            )
            moves, memory = next_move(
                descent, (down, grads.trainable), memory, (public, trainable)
            )
            trained = optax.apply_updates((public, trainable), moves)
            right = jnp.nan
            if kind.right is not None:
                own = grads.logits[: labels.shape[0]]  # the defence may add rows
                right = jnp.mean(kind.right(own, labels))
            tally = tally + jnp.stack([grads.loss, right, 1.0])
            return trained, grads.stats, memory, remembered, tally

        def maybe(carry, inputs):
            valid, *inputs = inputs
            # Under a batch both branches are computed and one is chosen; in a loop
            # the padding costs nothing.
            return jax.lax.cond(
                valid, lambda carry: step(carry, inputs), lambda carry: carry, carry
            ), None

        start = (received, state.private.trainable)
        memory = descent.init(start) if reset_optimiser else state.optimiser
        indices = jnp.arange(batches.labels.shape[0])
        (trained, new_stats, memory, remembered, tally), _ = jax.lax.scan(
            maybe,
            (start, stats, memory, state.release.steps, jnp.zeros(3)),
            (batches.valid, indices, batches.inputs, batches.labels),
        )
        public, trainable = trained
        delta = jax.tree.map(jnp.subtract, public, received)
        images, labels = batches.inputs, batches.labels
        sent, of_update = defence.update.release(
            derive_rng(rng, ROUND_PURPOSES, "release"),
            state.release.update,
            delta,
            Context(
                received,
                stats,
                *jax.tree.map(_of_all_steps, (images, kind.encode(labels))),
                private=Private(secret, trainable),
            ),
        )
        upload = Upload(sent, new_stats)
        kept = ClientState(
            Private(secret, trainable), memory, Remembered(remembered, of_update)
        )
        total, right, steps = tally
        # The server can judge what is sent, and nothing else: to leave a client out for
        # what it keeps would tell of data that a private release hides.
        kept = jax.tree.map(functools.partial(jnp.where, all_finite(kept)), kept, state)
        progress = Progress(total / steps, right / steps, all_finite(upload))
        return delta, upload, kept, progress

    def visible(
        rng: Rng,
        received: Public,
        stats: Stats,
        state: ClientState,
        batches: Batches,
        sent: Public,
    ) -> PyTree | None:
        kind = targets_of(model, received, stats, batches.inputs, targets)
        private = renew_private(renew, rng, state.private)
        # As `local_update` draws them, whose mask of an upload is the same one if each
        # example is used once: here are those of all steps, also of the padding.
        rng_gradient, rng_visible = jax.random.split(
            derive_rng(rng, ROUND_PURPOSES, "visible")
        )
        mine = functools.partial(gradient, rng_gradient, received, stats, private)
        inputs, aims = jax.tree.map(
            _of_all_steps, (batches.inputs, kind.encode(batches.labels))
        )
        context = Context(received, stats, inputs, aims, mine, private)
        return visible_of(defence, rng_visible, sent, context)

    return LocalTraining(init, lambda *args: record(*args)[1:], record, visible)


def next_move(
    optimiser: optax.GradientTransformation, grads: PyTree, state: PyTree, now: PyTree
) -> tuple[PyTree, PyTree]:
    """Asks an optimiser for its move and its next state, given a gradient.

    Raises:
      ValueError: where the optimiser fails, such as one that a gradient is not enough
        for.
    """
    try:
        return optimiser.update(grads, state, now)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the optimiser fails, given a gradient alone ({type(error).__name__}: "
            f"{error}); what looks at the loss itself, such as optax.lbfgs, has no "
            "place in a training: take one like optax.sgd or optax.adam"
        ) from error


def renew_private(renew: Renew | None, rng: Rng, private: Private) -> Private:
    """Gives the private part of a client at the first step of a round."""
    if renew is None:
        return private
    return renew(derive_rng(rng, ROUND_PURPOSES, "renewal"), private)


def targets_of(
    model: Model,
    public: Public,
    stats: Stats,
    images: PyTree,
    targets: TargetSpec | None,
) -> TargetSpec:
    """Gives what a client trains towards; if nothing is said, classes, one per logit.

    Args:
      model, public, stats: the network, which is asked without computing anything.
      images: [T, B, ...].
      targets: what is said.
    """
    if targets is not None:
        return targets
    batch = jax.tree.map(lambda x: x[0], images)
    logits = jax.eval_shape(
        lambda: model.apply(public.model, stats, batch, train=False).logits
    )
    return classes_of(logits.shape[-1])


def _of_all_steps(values: Array) -> Array:
    return values.reshape(-1, *values.shape[2:])


def all_finite(tree: PyTree) -> Array:
    """Tells whether every floating-point number of a tree is finite."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in leaves], bool))
