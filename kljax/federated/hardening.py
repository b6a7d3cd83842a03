"""Hardening: what honest clients do against backdoors before they train.

A hardening changes the examples that a client trains on in a round, given the network
that it received. It is no defence of private data: nothing about it is in
`kljax.defences`, and no attack on an upload knows of it. Letters: T steps, B examples
in a batch, Kc classes.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from kljax.core.checks import check_whole_number, shown
from kljax.core.randomness import derive_rng
from kljax.core.registry import check_callable, make_named
from kljax.core.types import Array, Model, Private, Rng
from kljax.data.triggers import Overlay, lay_over
from kljax.defences import Defence
from kljax.federated.clients import Batches
from kljax.federated.role_texts import parse_numbers
from kljax.federated.server import ServerState
from kljax.federated.trigger_inversion import Classify, invert_pairs

# (rng, network as received, with the client's own gates, Batches) -> Batches alike.
Harden: TypeAlias = Callable[[Rng, Classify, Batches], Batches]


class Hardening(NamedTuple):
    """What honest clients do before they train, and when."""

    harden: Harden
    rounds: frozenset[int] | None = None  # None for all


# What the random key of a hardening is for.
PURPOSES = ("search", "targets", "stamped")


def flip(
    steps: int = 400,
    pair_steps: int = 200,
    examples: int = 16,
    share: float = 0.5,
    largest: float = 1 / 8,
) -> Harden:
    """Makes FLIP's: train on inverted triggers, with the true label.

    Once in a round a client looks for triggers of all pairs of classes in the network
    that it received, on its own examples. Of its batches it then stamps a share: an
    example of class s gets the trigger of (s, t), with t drawn from the other classes,
    and keeps its label s. Where no trigger of a pair was found, as of classes that the
    client has no examples of, nothing is stamped, nor where it covers too much of the
    image: that is no trigger, but the other class.

    Args:
      steps: of the search for the triggers of a class.
      pair_steps: of the search for those of a pair, which starts there.
      examples: of each class, by which triggers are looked for.
      share: of the examples of a batch that are stamped, in [0, 1].
      largest: share of the image that a trigger may cover, in [0, 1].

    Raises:
      ValueError: for numbers below 1, or shares outside [0, 1]; and where clients train
        on something else than images and classes.

    Reference: Zhang et al., "FLIP" (ICLR 2023), code KaiyuanZh/FLIP, invert_MNIST.py:
    400 steps for a class, 200 for a pair, half of a source's examples stamped, by
    triggers that cover an eighth of the image at most. Differs from it: there a client
    hardens by 100 steps of Adam of its own, inverts one pair anew at every second of
    them, and chooses pairs by how fast their masks grow. Here all pairs are inverted at
    once, so that none is chosen, and stamped examples are trained on in the client's
    own steps.
    """
    for name, value in (("steps", steps), ("pair_steps", pair_steps)):
        check_whole_number(name, value, 1)
    check_whole_number("examples", examples, 1)
    for name, value in (("share", share), ("largest", largest)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} of flip must be in [0, 1], got {shown(value)}")

    def harden(rng: Rng, classify: Classify, batches: Batches) -> Batches:
        _check(batches)
        labels, shape = batches.labels, batches.inputs.shape[2:]
        images = batches.inputs.reshape(-1, *shape)
        classes = jax.eval_shape(classify, images).shape[-1]
        _, pairs = invert_pairs(
            derive_rng(rng, PURPOSES, "search"),
            classify,
            images,
            labels.ravel(),
            jnp.repeat(batches.valid, labels.shape[1]),
            classes,
            examples=examples,
            steps=steps,
            pair_steps=pair_steps,
        )
        rng_targets = derive_rng(rng, PURPOSES, "targets")
        further = jax.random.randint(rng_targets, labels.shape, 1, classes)
        pair = labels, (labels + further) % classes
        rng_stamped = derive_rng(rng, PURPOSES, "stamped")
        drawn = jax.random.bernoulli(rng_stamped, float(share), labels.shape)
        small = pairs.size[pair] <= largest * shape[0] * shape[1]
        stamped = (drawn & small)[..., None, None, None]
        overlay = Overlay(*(x[pair] for x in pairs.overlay))
        laid_over = lay_over(batches.inputs, overlay)
        return batches._replace(inputs=jnp.where(stamped, laid_over, batches.inputs))

    return harden


def bind_hardening(
    hardening: Hardening, model: Model, defence: Defence
) -> Callable[[Array | bool, Rng, ServerState, Private, Batches], Batches]:
    """Makes what one client does before its local training.

    Args:
      hardening: any, and its rounds.
      model: the network.
      defence: of the client, whose gates the network has: with the private part from
        before the round.

    Returns:
      ``(acts [], rng, ServerState, Private, Batches) -> Batches``: hardened ones if it
      acts, and in this round.

    Raises:
      ValueError: when called with a hardening that changes shapes.
    """

    def harden(
        acts: Array | bool,
        rng: Rng,
        server: ServerState,
        private: Private,
        batches: Batches,
    ) -> Batches:
        (params, public), stats = server.public, server.stats

        def classify(images: Array) -> Array:
            gates = defence.gates(public, private)
            return model.apply(params, stats, images, gates=gates, train=False).logits

        def act(batches: Batches) -> Batches:
            made = hardening.harden(rng, classify, batches)
            shapes = [jax.tree.map(jnp.shape, tree) for tree in (made, batches)]
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"the hardening makes {shapes[0]} of {shapes[1]}: it must keep the "
                    "shapes"
                )
            return jax.tree.map(lambda x, y: jnp.asarray(x, y.dtype), made, batches)

        if hardening.rounds is not None:
            rounds = jnp.array(sorted(hardening.rounds))
            acts = acts & jnp.any(server.round == rounds)
        return jax.lax.cond(acts, act, lambda batches: batches, batches)

    return harden


def _check(batches: Batches) -> None:
    inputs, labels = batches.inputs, batches.labels
    images = getattr(inputs, "ndim", 0) == 5 and jnp.issubdtype(
        inputs.dtype, jnp.floating
    )
    if not images or labels.ndim != 2 or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            "flip hardens images [T, B, H, W, C] with classes [T, B], and clients "
            "train on something else"
        )


def no_hardening() -> None:
    """Makes nothing: clients train on their examples as they are."""
    return


HARDENINGS: dict[str, Callable[..., Harden | None]] = {
    "none": no_hardening,
    "flip": flip,
}


def make_hardening(text: str, rounds: int | None = None) -> Hardening | None:
    """Makes a hardening from its name and its numbers, such as ``flip=100,50@10-19``.

    Args:
      text: ``NAME[=OPTIONS][@ROUNDS]``, with OPTIONS as in
        `kljax.core.registry.make_named`, and ROUNDS such as ``12`` or ``5,10-19``, all
        where they are left out; a name of `HARDENINGS`, or ``package.module:function``
        for a function of the numbers that gives a `Harden`.
      rounds: how many there are; None for any number.

    Raises:
      ValueError: for an unknown name, numbers that it does not take, rounds that do not
        exist, rounds of what hardens nothing, and what is no function.
    """
    name, at, written = text.partition("@")
    acting, said = None, f"hardening {text!r}"
    if at:
        acting = frozenset(parse_numbers(said, written, "round", rounds, HOW))
    made = make_named("hardening", name, HARDENINGS)
    if made is None and at:
        raise ValueError(f"{said}: {name!r} hardens in no round: leave @{written} out")
    if made is None:
        return None
    return Hardening(check_callable("hardening", text, made), acting)


HOW = "write NAME or NAME@ROUNDS, such as flip@10-19"
