"""What a defence is: pure functions around what one client computes and sends.

A defence may change the forward pass (through gates), what is sent (through a release),
or both. A release acts on every gradient that the client computes: on the one that it
sends, or, in local training, on that of each step, before the client's optimiser. Or
it acts once, on the whole change that is uploaded after local training. Everything is
written for one client.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from kljax.core.types import (
    Array,
    Gate,
    Gates,
    InsertedModule,
    Params,
    Private,
    Public,
    PyTree,
    Rng,
)
from kljax.defences.context import Context
from kljax.threat import HiddenParts, SecretStrategy, as_sent


def send_all(rng: Rng, state: PyTree, grads: Public, context: Context):
    """Sends the gradient as it is."""
    del rng, context
    return grads, state


def as_given(rng: Rng, context: Context) -> tuple[Array, Array]:
    """Trains on the images and targets as they are."""
    del rng
    return context.inputs, context.targets


def no_state(grads: Public) -> PyTree:
    """Remembers nothing between releases."""
    del grads
    return ()


class Transform(NamedTuple):
    """What is done to what is about to be sent.

    Attributes:
      release: ``(rng, state, grads, Context) -> (sent, state)``. ``grads`` and
        ``sent`` are `Public` trees of the same structure, shapes and dtypes.
      simulate: ``(grads, sent, earlier, private) -> grads``. What an attacker who
        knows the defence assumes happened to its own candidate gradient, given what it
        saw.
        ``sent`` is None for a step of local training, whose gradient nobody sees.
        ``earlier`` is like ``sent`` with a leading axis [t], what the same client has
        sent before, oldest first; None where the server has no record of it.
        ``private`` is what the attacker takes for the client's `Private`, as its
        strategy about it has it (`Defence.strategies`).
      init_state: ``grads -> state``, before the first release.
      undo: ``(sent, earlier) -> grads``, see `simulate`. What an attacker who knows the
        defence takes for the gradient that was sent; None where a release loses what
        nobody can get back.
      log_prob: ``(seen, simulated) -> []``, the log-density of what is seen, given what
        `simulate` makes of the client's gradient; entries that are hidden are 0 in
        both. None where there is none, or nobody has written it down.
      log_prob_degree: with which power of ``seen - simulated`` it falls from where the
        two are equal; None where it is highest elsewhere, or nobody knows.
      deterministic: whether `simulate` gives what is released of a gradient, which then
        depends on no draw, no memory and no other thing. Noise that follows has its
        density around what is simulated.
      needs: out of `OF_GRADIENTS`, what `release` cannot do without: it does not act on
        a whole change then (`at_update`).
    """

    release: Callable[[Rng, PyTree, Public, Context], tuple[Public, PyTree]]
    simulate: Callable[[Public, Public | None, Public | None, Any], Public]
    init_state: Callable[[Public], PyTree]
    undo: Callable[[Public, Public | None], Public] | None = None
    log_prob: Callable[[Public, Public], Array] | None = None
    log_prob_degree: int | None = None
    deterministic: bool = False
    needs: tuple[str, ...] = ()


SEND_ALL = Transform(send_all, as_sent, no_state)


class Mechanism(NamedTuple):
    """What of a defence is a Gaussian mechanism of differential privacy.

    One unit (an example, or all that a client has) moves what is released by at most a
    bound, and noise of `noise_multiplier` times that bound is added. Two data sets are
    neighbours where one has a unit for which the other has nothing, a gradient or
    change of 0: what dp-accounting calls ``REPLACE_SPECIAL``.

    Attributes:
      noise_multiplier: [] standard deviation of the noise over the bound.
      unit: ``example`` or ``client``.
      releases: ``gradients``, in every local step, or the whole ``update``.
    """

    noise_multiplier: float | Array
    unit: Literal["example", "client"]
    releases: Literal["gradients", "update"]


def no_parts(rng: Rng, params: Params) -> tuple[PyTree, Private]:
    """Starts a defence that has neither public nor private parts."""
    del rng, params
    return (), Private()


def keep_private(rng: Rng, private: Private, count: int) -> Private:
    """Draws nothing anew."""
    del rng, count
    return private


def no_gates(public: PyTree, private: Private) -> Gates:
    """Leaves the forward pass alone."""
    del public, private
    return {}


def everything(rng: Rng, sent: Public, context: Context) -> PyTree:
    """Leaves all that is sent to be read."""
    del rng, context
    return jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), sent)


class Defence(NamedTuple):
    """A defence of one client; what is not given by keyword does nothing.

    Attributes:
      init: ``(rng, params) -> (public, Private)``. ``public`` is uploaded and
        aggregated like any parameter; gradients reach ``Private.trainable`` through
        the gates, and never ``Private.secret``.
      inputs: ``(rng, Context) -> (images [B, H, W, C], targets [B, Kc])``: what is
        trained on in place of the batch in the context. It may be of more rows: the
        first B take the places of the batch.
      simulate_inputs: the same of an attacker who knows the defence, and replaces its
        candidate, with draws of its own; ``Context.private`` is what it takes for the
        client's. It has a derivative. None where inputs are as given, or nobody
        simulates them.
      gates: ``(public, Private) -> gates``. For an empty ``Private()`` it gives the
        gates that follow from public knowledge alone.
        A gate may be a `kljax.core.types.InsertedModule` as well, whose parameters are
        public, and which may add to the client's loss.
      draw_private: ``(rng, Private, B) -> Private``: what is drawn anew in each step,
        for its B examples, before its gradient. Of an array in ``secret`` every example
        has a row. It is forgotten after the step.
      strategies: what an attacker may do about what is hidden; an arm of the defence
        names one of them. Empty where nothing is hidden.
      hidden_parts: what reports call what is hidden.
      per_example: ``(rng, grads) -> grads`` of one example alone, before the mean over
        the batch is taken; None where no example is looked at alone. Every example has
        a random key of its own. Norm layers in train mode then have the statistics of
        one example.
      simulate_example: ``grads -> grads``, what an attacker who knows the defence
        assumes happened to the gradient of each of its candidate's examples, before
        the mean over them. None where nothing did, or nobody simulates it. With
        `deterministic`, it gives what `per_example` does.
      release, simulate, init_state, undo, log_prob, log_prob_degree, deterministic,
        needs: of each gradient, see `Transform`.
      update: the same for the whole change of a local training, after its last step.
      visible: ``(rng, sent, Context) -> tree like sent of bool arrays``: which entries
        of what is sent a server can read. It aggregates the others all the same, as
        under encryption, and it sees which they are.
      mechanism: the guarantee that its releases have; None where they have none, or
        nobody accounts for it. See `kljax.defences.accounting`.
    """

    init: Callable[[Rng, Params], tuple[PyTree, Private]] = no_parts
    inputs: Callable[[Rng, Context], tuple[Array, Array]] = as_given
    simulate_inputs: Callable[[Rng, Context], tuple[Array, Array]] | None = None
    gates: Callable[[PyTree, Private], Gates] = no_gates
    draw_private: Callable[[Rng, Private, int], Private] = keep_private
    strategies: tuple[SecretStrategy, ...] = ()
    hidden_parts: HiddenParts = HiddenParts()
    per_example: Callable[[Rng, Public], Public] | None = None
    simulate_example: Callable[[Public], Public] | None = None
    release: Callable[[Rng, PyTree, Public, Context], tuple[Public, PyTree]] = send_all
    simulate: Callable[[Public, Public | None, Public | None, Any], Public] = as_sent
    init_state: Callable[[Public], PyTree] = no_state
    undo: Callable[[Public, Public | None], Public] | None = None
    log_prob: Callable[[Public, Public], Array] | None = None
    log_prob_degree: int | None = None
    deterministic: bool = False
    needs: tuple[str, ...] = ()
    update: Transform = SEND_ALL
    visible: Callable[[Rng, Public, Context], PyTree] = everything
    mechanism: Mechanism | None = None


def widened(x: Array) -> Array:
    """Gives an array in float32, or in its own type if that is wider."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def sum_visible(log_density: Callable[[Array, Array], Array]) -> Callable[..., Array]:
    """Makes the log-density of an upload from that of the entries of a tensor.

    Args:
      log_density: ``(seen, simulated) -> log-densities``, one for each entry.

    Returns:
      ``(seen, simulated) -> []``, the sum over what can be read: a hidden tensor is
      None, a hidden entry NaN (`Defence.log_prob`).
    """

    def of_tensor(x: Array | None, mean: Array | None) -> Array:
        if x is None:
            return jnp.zeros(())
        visible = ~jnp.isnan(x)
        # Filled in before: a NaN would spoil the derivative.
        x, mean = (jnp.where(visible, value, 0.0) for value in (x, mean))
        return jnp.sum(jnp.where(visible, log_density(x, mean), 0.0))

    def log_prob(seen: Public, simulated: Public) -> Array:
        logs = jax.tree.map(of_tensor, seen, simulated, is_leaf=lambda x: x is None)
        return jax.tree.reduce(jnp.add, logs, jnp.zeros(()))

    return log_prob


def inserted_modules(gates: Gates) -> dict[str, InsertedModule]:
    """Picks the modules that a defence inserts, which are no gates of a site."""
    return {name: gate for name, gate in gates.items() if not isinstance(gate, Gate)}


def inserts_modules(defence: Defence, params: Params) -> bool:
    """Tells whether a defence puts more than gates into a network.

    Args:
      defence: any.
      params: of the network, or their shapes.
    """
    parts = jax.eval_shape(defence.init, jax.random.key(0), params)
    return bool(inserted_modules(jax.eval_shape(defence.gates, *parts)))


def none() -> Defence:
    """Makes the absence of a defence: plain federated learning."""
    return Defence()


def at_update(defence: Defence) -> Defence:
    """Makes the same defence, which acts on the whole change instead of each gradient.

    Raises:
      ValueError: if it does nothing to a gradient, acts on the change already, or needs
        what a whole change has not (`Transform.needs`).
    """
    step = step_transform(defence)
    alone = defence.per_example is None and defence.update == SEND_ALL
    if step == SEND_ALL or not alone:
        raise ValueError(
            "only what changes each gradient, and nothing else that is sent, can act "
            "on the whole update instead"
        )
    if step.needs:
        needed = " and ".join(f"Context.{name}" for name in step.needs)
        raise ValueError(
            f"it needs {needed}, of the gradient of one step, which a whole change has "
            f"not: let it act on each gradient, without '@update'"
        )
    mechanism = defence.mechanism
    if mechanism is not None:
        mechanism = mechanism._replace(releases="update")
    return without_release(defence)._replace(update=step, mechanism=mechanism)


def step_transform(defence: Defence) -> Transform:
    """Gives what a defence does to each gradient."""
    return Transform(*(getattr(defence, name) for name in Transform._fields))


def without_release(defence: Defence) -> Defence:
    """Makes the same defence, but for what it does on release, which is nothing."""
    return defence._replace(**SEND_ALL._asdict(), update=SEND_ALL, mechanism=None)


def without_changes(defence: Defence) -> Defence:
    """Makes the same defence, but for all that it does to a computed gradient.

    Nothing is done on release or to an example's gradient. Where examples are looked at
    one by one they still are: draws and norm statistics are the same.
    """
    bare = without_release(defence)
    if defence.per_example is None:
        return bare
    return bare._replace(per_example=lambda rng, grads: grads)


def changes_gradients(defence: Defence) -> bool:
    """Tells whether a defence does anything to a computed gradient, or to a change."""
    return defence.per_example is not None or without_release(defence) != defence
