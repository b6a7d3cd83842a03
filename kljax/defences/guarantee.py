"""Which combinations of defences keep the guarantee of a private one among them."""

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp

from kljax.core.types import Public
from kljax.defences.defence import (
    SEND_ALL,
    Defence,
    Mechanism,
    Transform,
    as_given,
    everything,
    send_all,
    step_transform,
)


def kept_mechanism(members: Sequence[Defence]) -> Mechanism | None:
    """Gives the mechanism of defences that act in order; None without a private one.

    What comes after a private release may do anything to it that looks at nothing else
    (post-processing). What comes before may change the forward pass, where the unit is
    an example: each gradient is of one example alone and is clipped afterwards. Where
    it is a client, all that is done before the clipping is a function of that client.

    Raises:
      ValueError: for a combination of which that is not so, with what to do.
    """
    places = [i for i, member in enumerate(members) if member.mechanism is not None]
    if not places:
        return None
    if len(places) > 1:
        raise ValueError(
            "two defences of the chain have a guarantee of differential privacy each, "
            "and there is no account of both together: leave one out"
        )
    (place,) = places
    mechanism = members[place].mechanism
    of_examples = mechanism.unit == "example"
    for i, member in enumerate(members):
        which = f"defence {i} of the chain"
        if member.visible is not everything:
            raise ValueError(
                f"{which} hides entries by private gradients, which a guarantee of "
                "differential privacy does not cover: leave it out"
            )
        if of_examples and member.inputs is not as_given:
            raise ValueError(
                f"{which} replaces inputs, by which the examples of a batch may change "
                "each other's gradients: the guarantee of one example does not hold, "
                "leave it out"
            )
        if i < place and of_examples and _changes_gradients(member):
            raise ValueError(
                f"{which} changes gradients before noise is added for differential "
                "privacy, and how far one example moves them is unknown: put it "
                "behind; noise before the clipping is an option of dp-sgd, pre_clip_std"
            )
        if i > place and not _processes_what_is_sent(member):
            raise ValueError(
                f"{which} looks at more than what is released under differential "
                "privacy, or cannot be seen not to, and its guarantee would be lost: "
                "leave it out, or put it in front where a whole client is protected"
            )
    return mechanism


def _changes_gradients(member: Defence) -> bool:
    transforms = step_transform(member), member.update
    return member.per_example is not None or any(t != SEND_ALL for t in transforms)


def _processes_what_is_sent(member: Defence) -> bool:
    """Tells whether a defence looks at nothing but what is about to be sent."""
    if member.per_example is not None:
        return False
    return not any(map(_looks_around, (step_transform(member), member.update)))


def _looks_around(transform: Transform) -> bool:
    """Tells whether a release looks at its context, or cannot be tried."""
    if transform.release is send_all:
        return False
    probe = Public({"kernel": jnp.zeros((4, 3))})

    def release(rng) -> tuple[Any, Any]:
        state = transform.init_state(probe)
        return transform.release(rng, state, probe, _Closed())

    return not _succeeds(lambda: jax.eval_shape(release, jax.random.key(0)))


def _succeeds(attempt: Callable[[], Any]) -> bool:
    try:
        attempt()
    except Exception:  # a user's function may look for a tensor that is not there
        return False
    return True


class _Closed:
    """A context that cannot be looked at."""

    def __getattribute__(self, name: str) -> NoReturn:
        raise LookupError(name)
