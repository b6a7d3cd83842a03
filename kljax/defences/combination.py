"""Combinations: several defences of one client, in order."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kljax.core.types import Array, Public, PyTree, Rng
from kljax.defences.defence import (
    SEND_ALL,
    Context,
    Defence,
    Transform,
    as_given,
    everything,
    keep_private,
    no_gates,
    no_parts,
    step_transform,
)
from kljax.defences.guarantee import kept_mechanism


def chain(first: Defence, *transforms: Defence) -> Defence:
    """Applies gradient transforms, in order, to what `first` releases.

    Those that act on the whole change of a local training do so in the same order,
    after all steps. What one of them hides is hidden. What several of them do to a
    gradient cannot be undone. It has a density where the last of them has one, such as
    noise, and all before it are deterministic: it is that around what they make of a
    gradient. Inputs are replaced, and the gradients of single examples changed, in the
    same order, too; the latter comes before all that is done to their mean. Where that
    draws anything, or is not simulated, there is no density.

    Args:
      first: any defence.
      transforms: defences which change what is trained on, or what is sent (noise,
        pruning, ...).

    Raises:
      ValueError: if one of `transforms` has parts or gates of its own; put it first.
        And for what breaks the guarantee of a private defence among them
        (`kljax.defences.guarantee`).
    """
    for i, transform in enumerate(transforms, start=1):
        own = transform.init, transform.gates, transform.draw_private
        if own != (no_parts, no_gates, keep_private):
            raise ValueError(
                f"defence {i} of the chain has gates or parts of its own: only the "
                "first of a chain may change the forward pass, or hide anything"
            )
    members = (first, *transforms)
    step = _in_order([step_transform(member) for member in members])
    if not all(map(_simulates_examples, members)):
        step = step._replace(log_prob=None, log_prob_degree=None, deterministic=False)
    update = _in_order([member.update for member in members])
    return first._replace(
        **step._asdict(),
        update=update,
        inputs=_replacing([member.inputs for member in members]),
        simulate_inputs=_simulating(members),
        per_example=_one_by_one([member.per_example for member in members]),
        simulate_example=_simulated_one_by_one(members),
        visible=_readable([member.visible for member in members]),
        mechanism=kept_mechanism(members),
    )


def _replacing(members: list[Callable]) -> Callable[[Rng, Context], Any]:
    if all(member is as_given for member in members):
        return as_given

    def inputs(rng: Rng, context: Context) -> tuple[Array, Array]:
        for i, member in enumerate(members):
            images, targets = member(jax.random.fold_in(rng, i), context)
            context = context._replace(inputs=images, targets=targets)
        return context.inputs, context.targets

    return inputs


def _simulating(members: tuple[Defence, ...]) -> Callable | None:
    acting = [member for member in members if member.inputs is not as_given]
    if not acting or any(member.simulate_inputs is None for member in acting):
        return None
    return _replacing([member.simulate_inputs or as_given for member in members])


def _one_by_one(
    members: list[Callable | None],
) -> Callable[[Rng, Public], Public] | None:
    acting = [member for member in members if member is not None]

    def per_example(rng: Rng, grads: Public) -> Public:
        for i, member in enumerate(acting):
            grads = member(jax.random.fold_in(rng, i), grads)
        return grads

    return per_example if acting else None


def _simulates_examples(member: Defence) -> bool:
    """Tells whether it is known what a defence makes of each example's gradient."""
    if member.per_example is None:
        return True
    # What has a density is itself a chain, whose last part is noise.
    known = member.deterministic or member.log_prob is not None
    return known and member.simulate_example is not None


def _simulated_one_by_one(
    members: tuple[Defence, ...],
) -> Callable[[Public], Public] | None:
    """Makes the simulation of what several defences do to each example's gradient.

    None where nobody simulates one of them, of which the rest would be no simulation.
    """
    acting = [member for member in members if member.per_example is not None]
    if not acting or any(member.simulate_example is None for member in acting):
        return None

    def simulate_example(grads: Public) -> Public:
        for member in acting:
            grads = member.simulate_example(grads)
        return grads

    return simulate_example


def _readable(members: list[Callable]) -> Callable[[Rng, Public, Context], PyTree]:
    if all(member is everything for member in members):
        return everything

    def visible(rng: Rng, sent: Public, context: Context) -> PyTree:
        masks = [
            member(jax.random.fold_in(rng, i), sent, context)
            for i, member in enumerate(members)
        ]
        both = functools.partial(jax.tree.map, jnp.logical_and)
        return functools.reduce(both, masks)

    return visible


def _in_order(members: list[Transform]) -> Transform:
    acting = [member for member in members if member != SEND_ALL]
    if not acting:
        return SEND_ALL

    def release(rng: Rng, state, grads: Public, context: Context):
        states = []
        for i, (member, part) in enumerate(zip(members, state, strict=True)):
            # An independent draw per member, whatever the others consume.
            grads, part = member.release(
                jax.random.fold_in(rng, i), part, grads, context
            )
            states.append(part)
        return grads, tuple(states)

    def simulate(
        grads: Public, sent: Public | None, earlier: Public | None, private: Any
    ) -> Public:
        for member in members:
            grads = member.simulate(grads, sent, earlier, private)
        return grads

    def init_state(grads: Public):
        return tuple(member.init_state(grads) for member in members)

    if len(acting) == 1:
        return acting[0]._replace(release=release, init_state=init_state)
    needs = tuple(dict.fromkeys(name for member in acting for name in member.needs))
    *before, last = acting
    if any(not member.deterministic for member in before):
        return Transform(release, simulate, init_state, needs=needs)
    return Transform(
        release,
        simulate,
        init_state,
        needs=needs,
        log_prob=last.log_prob,
        log_prob_degree=last.log_prob_degree,
        deterministic=last.deterministic,
    )
