"""What a defence is: four pure functions around one client's gradient.

A defence may change the forward pass (through gates), what is sent (through release),
or both. Everything is written for one client and one gradient.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax

from kljax.typing import Array, Gates, Params, Private, Public, PyTree, Rng, Stats


class Context(NamedTuple):
    """What a client has at hand when it releases a gradient."""

    public: Public
    stats: Stats
    images: Array  # [B, H, W, C]
    targets: Array  # [B, Kc]


class Defence(NamedTuple):
    """A defence of one client.

    Attributes:
      init: ``(rng, params) -> (public, Private)``. ``public`` is uploaded and
        aggregated like any parameter; gradients reach ``Private.trainable`` through
        the gates, and never ``Private.secret``.
      gates: ``(public, Private) -> gates``. For an empty ``Private()`` it gives the
        gates that follow from public knowledge alone.
      release: ``(rng, state, grads, Context) -> (sent, state)``. ``grads`` and
        ``sent`` are `Public` trees of the same structure, shapes and dtypes.
      simulate: ``(grads, sent) -> grads``. What an attacker who knows the defence
        assumes happened to his own candidate gradient, given what he saw.
      init_state: ``grads -> state``, before the first release.
    """

    init: Callable[[Rng, Params], tuple[PyTree, Private]]
    gates: Callable[[PyTree, Private], Gates]
    release: Callable[[Rng, PyTree, Public, Context], tuple[Public, PyTree]]
    simulate: Callable[[Public, Public], Public]
    init_state: Callable[[Public], PyTree]


def no_parts(rng: Rng, params: Params) -> tuple[PyTree, Private]:
    """Starts a defence that has neither public nor private parts."""
    del rng, params
    return (), Private()


def no_gates(public: PyTree, private: Private) -> Gates:
    """Leaves the forward pass alone."""
    del public, private
    return {}


def send_all(rng: Rng, state: PyTree, grads: Public, context: Context):
    """Sends the gradient as it is."""
    del rng, context
    return grads, state


def as_sent(grads: Public, sent: Public) -> Public:
    """Assumes that the gradient was sent as it is."""
    del sent
    return grads


def no_state(grads: Public) -> PyTree:
    """Remembers nothing between releases."""
    del grads
    return ()


def known(strength: float | Array) -> bool:
    """Tells whether a strength can be looked at; under `jax.jit` it cannot."""
    return not isinstance(strength, jax.core.Tracer)


def none() -> Defence:
    """Makes the absence of a defence: plain federated learning."""
    return Defence(no_parts, no_gates, send_all, as_sent, no_state)


def chain(first: Defence, *transforms: Defence) -> Defence:
    """Applies gradient transforms, in order, to what `first` releases.

    Args:
      first: any defence.
      transforms: defences which change only what is sent (noise, pruning, ...).

    Raises:
      ValueError: if one of `transforms` has parts or gates of its own; put it first.
    """
    for i, transform in enumerate(transforms, start=1):
        if transform.init is not no_parts or transform.gates is not no_gates:
            raise ValueError(
                f"defence {i} of the chain has gates or parts of its own: only the "
                "first of a chain may change the forward pass"
            )
    members = (first, *transforms)

    def release(rng: Rng, state, grads: Public, context: Context):
        states = []
        for i, (member, part) in enumerate(zip(members, state, strict=True)):
            # An independent draw per member, whatever the others consume.
            grads, part = member.release(
                jax.random.fold_in(rng, i), part, grads, context
            )
            states.append(part)
        return grads, tuple(states)

    def simulate(grads: Public, sent: Public) -> Public:
        for member in members:
            grads = member.simulate(grads, sent)
        return grads

    def init_state(grads: Public):
        return tuple(member.init_state(grads) for member in members)

    return Defence(first.init, first.gates, release, simulate, init_state)
