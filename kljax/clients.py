"""What a client does: its gradient, apart into what may leave and what may not."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kljax.defences import (
    SEND_ALL,
    Context,
    Defence,
    step_transform,
    without_release,
)
from kljax.losses import checked
from kljax.randomness import derive_rng
from kljax.threat import LocalSteps, Update
from kljax.typing import (
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

# What the random key of a step, or of a round of local training, is for.
STEP_PURPOSES = ("gradient", "release", "renewal", "augmentation")
ROUND_PURPOSES = ("steps", "release", "renewal")
# Of one step of a round.
LOCAL_PURPOSES = ("augmentation", "gradient", "release")


class Gradient(NamedTuple):
    """The gradient of one step, before anything is released."""

    public: Public
    trainable: PyTree  # gradient of the lock weights: private
    stats: Stats  # norm statistics after the step
    loss: Array  # []
    logits: Array  # [B, Kc]


def local_gradient(
    model: Model, loss: Loss, defence: Defence, *, train: bool
) -> Callable[..., Gradient]:
    """Makes the function that computes one client's gradient.

    Args:
      model: the network.
      loss: ``(logits, targets) -> scalar``; see `kljax.losses.checked` for what is
        refused.
      defence: the client's defence; only its gates matter here.
      train: whether norm layers use the batch's statistics (and dropout is on).

    Returns:
      ``(rng, public, stats, private, images [B, H, W, C], targets [B, Kc]) ->
      Gradient``. The secret is never differentiated.
    """

    def gradient(
        rng: Rng, public: Public, stats: Stats, private: Private, images, targets
    ) -> Gradient:
        def objective(public: Public, trainable: PyTree):
            gates = defence.gates(public.defence, Private(private.secret, trainable))
            out = model.apply(
                public.model, stats, images, gates=gates, train=train, rngs=rng
            )
            return checked(loss)(out.logits, targets), out

        (value, out), grads = jax.value_and_grad(
            objective, argnums=(0, 1), has_aux=True
        )(public, private.trainable)
        return Gradient(*grads, out.stats, value, out.logits)

    return gradient


def one_step(
    model: Model,
    loss: Loss,
    defence: Defence,
    *,
    train: bool,
    augment: Augment | None = None,
    penalty: Penalty | None = None,
    reset_optimiser: bool = False,
    renew: Renew | None = None,
) -> Callable[..., Update]:
    """Makes the function that runs one client for one step and records all of it.

    Args:
      model, loss, defence: see `local_gradient`.
      train: whether norm layers use the batch's statistics (and dropout is on).
      augment, penalty, reset_optimiser, renew: of `local_training`, whose first step
        this is; a gradient has no optimiser. The `Update` holds the images before an
        augmentation.

    Returns:
      ``(rng, public, stats, private, images, targets, remembered=None) -> Update``:
      everything that is true about this step, released gradient included.
      `kljax.threat.observe` decides what of it anyone else gets to see. `remembered`
      is what the release remembers of steps before (`Remembered.steps`).

    Raises:
      ValueError: for a defence that acts on the change of a whole local training.
    """
    del reset_optimiser
    if defence.update != SEND_ALL:
        raise ValueError(
            "the defence acts on the whole change of a local training, and one step "
            "sends a gradient: take one that acts on gradients"
        )
    gradient = local_gradient(model, loss, defence, train=train)

    def step(
        rng: Rng,
        public: Public,
        stats: Stats,
        private: Private,
        images,
        targets,
        remembered: PyTree | None = None,
    ) -> Update:
        if remembered is None:
            remembered = defence.init_state(public)

        def rng_of(purpose: str) -> Rng:
            return derive_rng(rng, STEP_PURPOSES, purpose)

        if renew is not None:
            private = renew(rng_of("renewal"), private)
        seen = images if augment is None else augment(rng_of("augmentation"), images)
        grads = gradient(rng_of("gradient"), public, stats, private, seen, targets)
        down = _with_pull(penalty, grads.public, public, public)
        sent, _ = defence.release(
            rng_of("release"),
            remembered,
            down,
            Context(public, stats, seen, targets),
        )
        return Update(
            public=public,
            stats=stats,
            sent=sent,
            before_release=down,
            new_stats=grads.stats,
            images=images,
            targets=targets,
            private=private,
            initial_lock_weights=private.trainable,
            lock_grads=grads.trainable,
        )

    return step


class Batches(NamedTuple):
    """What one client trains on in one round."""

    images: Array  # [T, B, H, W, C] in [0, 1]
    labels: Array  # [T, B] int32
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
    accuracy: Array  # [] share of examples right before the step that used them
    finite: Array  # [] bool: everything uploaded and kept is finite


class LocalTraining(NamedTuple):
    """Local training of one client as two pure functions.

    Attributes:
      init: ``(Public, Private) -> ClientState``, before the first round.
      run: ``(rng, round [], Public, stats, ClientState, Batches) -> (Upload,
        ClientState, Progress)``.
      record: the same with the change before anything was done to the whole of it,
        which comes first; for who studies what a release hides.
    """

    init: Callable[[Public, Private], ClientState]
    run: Callable[..., tuple[Upload, ClientState, Progress]]
    record: Callable[..., tuple[Public, Upload, ClientState, Progress]]


# A method, or the method of round r: that is how a schedule counts rounds.
LocalOptimiser = (
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

    Guarantees: a step whose ``valid`` is false changes nothing, so a padded client
    equals the unpadded one (a release of the update that looks at the images in its
    `Context` sees the padding, too); step t draws its randomness from (rng, t).

    Reference: McMahan et al., "Communication-Efficient Learning of Deep Networks from
    Decentralized Data" (AISTATS 2017); FedKL, utils/Client.py.
    """
    fixed = isinstance(optimiser, optax.GradientTransformation)
    method = (lambda number: optimiser) if fixed else optimiser

    gradient = local_gradient(model, loss, defence, train=True)

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
        num_classes = _num_classes(model, received, stats, batches.images[0])
        one_hot = functools.partial(jax.nn.one_hot, num_classes=num_classes)
        state = state._replace(private=_renewed(renew, rng, state.private))
        secret, descent = state.private.secret, method(number)

        def step(carry, inputs):
            (public, trainable), stats, memory, remembered, tally = carry
            index, images, labels = inputs
            rng_local = jax.random.fold_in(rng_steps, index)

            def rng_of(purpose: str) -> Rng:
                return derive_rng(rng_local, LOCAL_PURPOSES, purpose)

            if augment is not None:
                images = augment(rng_of("augmentation"), images)
            private = Private(secret, trainable)
            targets = one_hot(labels)
            grads = gradient(
                rng_of("gradient"), public, stats, private, images, targets
            )
            down, remembered = defence.release(
                rng_of("release"),
                remembered,
                _with_pull(penalty, grads.public, public, received),
                Context(public, stats, images, targets),
            )
            moves, memory = next_move(
                descent, (down, grads.trainable), memory, (public, trainable)
            )
            trained = optax.apply_updates((public, trainable), moves)
            right = jnp.mean(jnp.argmax(grads.logits, axis=-1) == labels)
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
            (batches.valid, indices, batches.images, batches.labels),
        )
        public, trainable = trained
        delta = jax.tree.map(jnp.subtract, public, received)
        images, labels = batches.images, batches.labels
        sent, of_update = defence.update.release(
            derive_rng(rng, ROUND_PURPOSES, "release"),
            state.release.update,
            delta,
            Context(
                received,
                stats,
                images.reshape(-1, *images.shape[2:]),
                one_hot(labels.reshape(-1)),
            ),
        )
        upload = Upload(sent, new_stats)
        kept = ClientState(
            Private(secret, trainable), memory, Remembered(remembered, of_update)
        )
        total, right, steps = tally
        progress = Progress(total / steps, right / steps, _finite((upload, kept)))
        return delta, upload, kept, progress

    return LocalTraining(init, lambda *args: record(*args)[1:], record)


def next_move(
    optimiser: optax.GradientTransformation, grads: PyTree, state: PyTree, now: PyTree
) -> tuple[PyTree, PyTree]:
    """Asks an optimiser for its move and its next state, given a gradient.

    Raises:
      ValueError: for an optimiser that a gradient is not enough for.
    """
    try:
        return optimiser.update(grads, state, now)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "the optimiser cannot move by a gradient alone: what looks at the loss "
            "itself, such as optax.lbfgs, has no place in a training; take one like "
            f"optax.sgd or optax.adam ({type(error).__name__}: {error})"
        ) from error


class LocalUpdate(NamedTuple):
    """One client's whole local training, for who studies what it gives away.

    Attributes:
      init: of the `LocalTraining` that it is made of.
      run: ``(rng, round [], Public, stats, ClientState, images [n, H, W, C], labels
        [n]) -> Update``.
    """

    init: Callable[[Public, Private], ClientState]
    run: Callable[..., Update]


def local_update(
    model: Model,
    loss: Loss,
    defence: Defence,
    optimiser: LocalOptimiser,
    *,
    steps: int,
    batch: int,
    **options,
) -> LocalUpdate:
    """Makes the function that trains one client and records all of it.

    The n examples are cut into batches of B in order; after the last batch comes the
    first again, until T steps are made.

    Args:
      model, loss, defence, optimiser: see `local_training`.
      steps: T.
      batch: B; it divides the number of examples.
      options: of `local_training`. Under an augmentation, what was trained on is not
        what the `Update` says.

    Returns:
      The pair of functions. The `Update` holds the private part that the client takes
      its first step with, also as the lock weights of round 0: whoever knows better
      replaces them.

    Raises:
      ValueError: for T or B below 1, and from ``run`` if B does not divide n.
    """
    if min(steps, batch) < 1:
        raise ValueError(f"steps={steps} and batch={batch} must be at least 1")
    renew = options.pop("renew", None)
    training = local_training(model, loss, defence, optimiser, **options)
    bare = local_training(model, loss, without_release(defence), optimiser, **options)

    def run(
        rng: Rng,
        number: Array,
        received: Public,
        stats: Stats,
        state: ClientState,
        images: Array,
        labels: Array,
    ) -> Update:
        examples = images.shape[0]
        if examples % batch:
            raise ValueError(
                f"batch={batch} does not divide the {examples} examples of the update"
            )
        order = np.arange(steps * batch) % examples
        batches = Batches(
            images[order].reshape(steps, batch, *images.shape[1:]),
            labels[order].reshape(steps, batch),
            jnp.ones(steps, bool),
        )
        state = state._replace(private=_renewed(renew, rng, state.private))
        delta, upload, kept, _ = training.record(
            rng, number, received, stats, state, batches
        )
        if step_transform(defence) != SEND_ALL:
            # The same draws: what a release consumes is nobody else's.
            forgetful = state._replace(release=Remembered((), ()))
            delta, *_ = bare.record(rng, number, received, stats, forgetful, batches)
        before = state.private.trainable
        return Update(
            public=received,
            stats=stats,
            sent=upload.delta,
            before_release=delta,
            new_stats=upload.stats,
            images=images,
            targets=jax.nn.one_hot(
                labels, _num_classes(model, received, stats, batches.images[0])
            ),
            private=state.private,
            initial_lock_weights=before,
            lock_grads=jax.tree.map(jnp.subtract, kept.private.trainable, before),
            local=LocalSteps(steps, batch),
        )

    return LocalUpdate(training.init, run)


def _renewed(renew: Renew | None, rng: Rng, private: Private) -> Private:
    """Gives the private part of a client at the first step of a round."""
    if renew is None:
        return private
    return renew(derive_rng(rng, ROUND_PURPOSES, "renewal"), private)


def _with_pull(
    penalty: Penalty | None, grads: Public, now: Public, received: Public
) -> Public:
    """Adds the gradient of a penalty to that of the loss."""
    if penalty is None:
        return grads
    return jax.tree.map(jnp.add, grads, jax.grad(penalty)(now, received))


def _num_classes(model: Model, public: Public, stats: Stats, images: Array) -> int:
    """Asks the network for its number of classes, without computing anything."""
    logits = jax.eval_shape(
        lambda: model.apply(public.model, stats, images, train=False).logits
    )
    return logits.shape[-1]


def _finite(tree: PyTree) -> Array:
    """Tells whether every floating-point number of a tree is finite."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]))
