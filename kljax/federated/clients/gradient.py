"""One gradient of a client, and one step with everything that is true about it.

Taken apart into what may leave and what may not: a `Gradient` before any release, and
the `Update` of a step.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kljax.core.randomness import LAST, derive_rng
from kljax.core.targets import TargetSpec
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
from kljax.defences import (
    SEND_ALL,
    Context,
    Defence,
    as_given,
    everything,
    without_changes,
)
from kljax.defences.defence import keep_private
from kljax.models.losses import checked
from kljax.threat import Update
from kljax.threat.observation import check_mask

# What the random key of a step is for.
STEP_PURPOSES = (
    "gradient",
    "release",
    "renewal",
    "augmentation",
    "visible",
    "earlier",
    "inputs",
    "private",
)


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
      ``(rng, public, stats, private, inputs [B, H, W, C], targets [B, Kc]) ->
      Gradient``. The secret is never differentiated. Of what is drawn anew in a step
      (`Defence.draw_private`) `private` has the draw.
    """

    def gradient(
        rng: Rng, public: Public, stats: Stats, private: Private, inputs, targets
    ) -> Gradient:
        def objective(public: Public, trainable: PyTree):
            gates = defence.gates(public.defence, Private(private.secret, trainable))
            out = model.apply(
                public.model, stats, inputs, gates=gates, train=train, rngs=rng
            )
            return checked(loss)(out.logits, targets) + out.added_loss, out

        (value, out), grads = jax.value_and_grad(
            objective, argnums=(0, 1), has_aux=True
        )(public, private.trainable)
        return Gradient(*grads, out.stats, value, out.logits)

    if defence.per_example is None:
        return gradient
    drawn = defence.draw_private is not keep_private
    return _by_example(gradient, defence.per_example, drawn)


def local_loss(model: Model, loss: Loss, defence: Defence) -> Callable[..., Array]:
    """Makes the function that computes one client's loss at any parameters.

    Args:
      model, loss, defence: see `local_gradient`.

    Returns:
      ``(stats, private, inputs [B, H, W, C], targets [B, Kc], public) -> []``, with
      norms in eval mode and without dropout; `Context.loss` once the first four are
      given.
    """

    def value(stats: Stats, private: Private, inputs, targets, public: Public) -> Array:
        gates = defence.gates(public.defence, private)
        out = model.apply(public.model, stats, inputs, gates=gates, train=False)
        return checked(loss)(out.logits, targets) + out.added_loss

    return value


def local_features(
    model: Model, defence: Defence, *, train: bool
) -> Callable[..., Array]:
    """Makes the function that computes a value on the way through one client's network.

    Args:
      model, defence, train: see `local_gradient`.

    Returns:
      ``(rng, public, stats, private, name, inputs [B, H, W, C]) -> [B, ...]``, of all
      examples together; `Context.features` once the first four are given. With those
      of `local_gradient` it is the value that the gradient was computed through.
    """

    def features(
        rng: Rng, public: Public, stats: Stats, private: Private, name: str, inputs
    ) -> Array:
        gates = defence.gates(public.defence, private)
        out = model.apply(
            public.model,
            stats,
            inputs,
            gates=gates,
            taps=(name,),
            train=train,
            rngs=rng,
        )
        return out.taps[name]

    return features


def _by_example(
    gradient: Callable[..., Gradient],
    change: Callable[[Rng, Public], Public],
    drawn: bool,
) -> Callable[..., Gradient]:
    """Makes the mean over examples of what `change` makes of each one's gradient.

    Args:
      gradient: of a batch, see `local_gradient`.
      change: see `Defence.per_example`.
      drawn: whether of the secret every example has a row of its own.
    """

    def mean(
        rng: Rng, public: Public, stats: Stats, private: Private, inputs, targets
    ) -> Gradient:
        def one(example) -> Gradient:
            index, own_input, target = example
            own = private
            if drawn:  # every example has a row of its own
                secret = jax.tree.map(lambda x: x[index][None], private.secret)
                own = private._replace(secret=secret)
            rng_change = jax.random.fold_in(rng_changes, index)
            found = gradient(
                jax.random.fold_in(rng, index),
                public,
                stats,
                own,
                *jax.tree.map(lambda x: x[None], (own_input, target)),
            )
            changed = change(rng_change, found.public)
            return found._replace(public=changed, logits=found.logits[0])

        count = targets.shape[0]
        # No example has this number.
        rng_changes = jax.random.fold_in(rng, LAST)
        each = jax.lax.map(one, (jnp.arange(count), inputs, targets), batch_size=count)
        return jax.tree.map(lambda x: jnp.mean(x, axis=0), each)._replace(
            logits=each.logits
        )

    return mean


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
    targets: TargetSpec | None = None,
) -> Callable[..., Update]:
    """Makes the function that runs one client for one step and records all of it.

    Args:
      model, loss, defence: see `local_gradient`.
      train: whether norm layers use the batch's statistics (and dropout is on).
      augment, penalty, reset_optimiser, renew, targets: of `local_training`, whose
        first step this is; a gradient has no optimiser, and is given its targets. The
        `Update` holds the inputs before an augmentation.

    Returns:
      ``(rng, public, stats, private, inputs, targets, remembered=None) -> Update``:
      everything that is true about this step, released gradient included.
      `kljax.threat.observe` decides what of it anyone else gets to see. `remembered`
      is what the release remembers of steps before (`Remembered.steps`).

    Raises:
      ValueError: for a defence that acts on the change of a whole local training.
    """
    del reset_optimiser, targets
    if defence.update != SEND_ALL:
        raise ValueError(
            "the defence acts on the whole change of a local training, and one step "
            "sends a gradient: take one that acts on gradients"
        )
    gradient = local_gradient(model, loss, defence, train=train)
    value = local_loss(model, loss, defence)
    features = local_features(model, defence, train=train)
    bare = local_gradient(model, loss, without_changes(defence), train=train)

    def step(
        rng: Rng,
        public: Public,
        stats: Stats,
        private: Private,
        inputs,
        targets,
        remembered: PyTree | None = None,
    ) -> Update:
        if remembered is None:
            remembered = defence.init_state(public)

        def rng_of(purpose: str) -> Rng:
            return derive_rng(rng, STEP_PURPOSES, purpose)

        if renew is not None:
            private = renew(rng_of("renewal"), private)
        private = defence.draw_private(rng_of("private"), private, targets.shape[0])
        seen = inputs if augment is None else augment(rng_of("augmentation"), inputs)
        at = rng_of("gradient"), public, stats, private
        mine = functools.partial(gradient, *at)
        used, aims = defence.inputs(
            rng_of("inputs"), Context(public, stats, seen, targets, mine, private)
        )
        grads = mine(used, aims)
        there = functools.partial(value, stats, private, used, aims)
        inside = functools.partial(features, *at)
        context = Context(public, stats, used, aims, mine, private, there, inside)
        down = add_pull(penalty, grads.public, public, public)
        sent, remembered = defence.release(rng_of("release"), remembered, down, context)
        if defence.per_example is not None:
            unchanged = bare(rng_of("gradient"), public, stats, private, used, aims)
            down = add_pull(penalty, unchanged.public, public, public)
        return Update(
            public=public,
            stats=stats,
            sent=sent,
            before_release=down,
            new_stats=grads.stats,
            inputs=inputs,
            targets=targets,
            private=private,
            initial_lock_weights=private.trainable,
            lock_grads=grads.trainable,
            visible=visible_of(defence, rng_of("visible"), sent, context),
            remembered=remembered,
            substitute=None if defence.inputs is as_given else used,
        )

    return step


def visible_of(
    defence: Defence, rng: Rng, sent: Public, context: Context
) -> PyTree | None:
    """Tells what of an upload can be read, as `Update` has it: None for everything.

    Raises:
      ValueError: for a mask that is not like what is sent.
    """
    if defence.visible is everything:
        return None
    visible = defence.visible(rng, sent, context)
    check_mask(sent, visible)
    return visible


def add_pull(
    penalty: Penalty | None, grads: Public, now: Public, received: Public
) -> Public:
    """Adds the gradient of a penalty to that of the loss."""
    if penalty is None:
        return grads
    return jax.tree.map(jnp.add, grads, jax.grad(penalty)(now, received))
