"""Untrained networks: images are looked for among those that one makes of fixed noise.

The network (`kljax.attacks.encoder_decoders`) has seen no image. Its structure alone
prefers some to others, and its weights are the unknowns. That structure may be fixed,
or chosen first, among many that are drawn: by how well the image which a network makes
before it is trained matches the gradient.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from kljax.attacks.architectures import (
    Architecture,
    Space,
    check_space,
    fitting_scales,
    fixed,
)
from kljax.attacks.attack import Judge, Moves, Unknown
from kljax.attacks.encoder_decoders import draw_weights, generate
from kljax.attacks.setting import Setting
from kljax.core.spare_devices import deal_out
from kljax.core.types import Array, PyTree, Rng
from kljax.threat import View

# What moves a search moves floats: whole numbers are rounded back to.
WHOLE = ("skips", "width", "doubling", "convolution", "kernel")


class Network(NamedTuple):
    """An untrained network.

    Attributes:
      weights: [n] of `kljax.attacks.encoder_decoders.draw_weights`.
      architecture: if it was looked for; () if it is fixed.
    """

    weights: Array
    architecture: Architecture | tuple[()]


def space_of(
    setting: Setting, channels: int, scales: int, kernel: int = 1, narrowest: int = 0
) -> Space:
    """Makes the space of networks that make a setting's images.

    Args:
      setting: gives the image's shape.
      channels: C of all maps.
      scales: L; 0 for `fitting_scales`.
      kernel: largest side of what doubles.
      narrowest: least channels in use; 0 for all.

    Raises:
      ValueError: for numbers of which no network can be made.
    """
    shape = setting.task.image_shape
    scales = scales or fitting_scales(shape)
    return check_space(Space(shape, channels, scales, kernel, narrowest or channels))


def untrained_images(
    setting: Setting, space: Space, architecture: Architecture | None = None
) -> Unknown:
    """Looks for the weights of an untrained network, fed with fixed noise N(0, 1).

    Args:
      setting: gives the number B of examples.
      space: of the network.
      architecture: of numbers that are part of the program; None for one that is drawn
        with the weights. That one is among what is free (`Network`), where a move can
        exchange it; no gradient changes it. It comes back in ``info``.

    Reference: Ulyanov, Vedaldi, Lempitsky, "Deep Image Prior" (CVPR 2018); Zhang et
    al., "Generative Gradient Inversion via Over-Parameterized Networks" (ICCV 2023).
    """
    examples = setting.threat.knowledge.examples
    built = None if architecture is None else fixed(architecture)

    def start(rng: Rng, view: View) -> tuple[Network, Array]:
        del view
        rng_network, rng_noise = jax.random.split(rng)
        noise = jax.random.normal(rng_noise, (examples, *space.shape))
        if built is None:
            return draw_network(rng_network, space), noise
        return Network(draw_weights(rng_network, space, built), ()), noise

    def decode(free: Network, noise: Array) -> Array:
        one = _settled(free.architecture) if built is None else built
        return generate(space, one, free.weights, noise)

    def report(free: Network, noise: Array) -> dict[str, PyTree]:
        del noise
        return {"architecture": free.architecture}

    return Unknown(start, decode, report=report if built is None else None)


def draw_network(rng: Rng, space: Space) -> Network:
    """Draws an architecture, and weights for it."""
    rng_architecture, rng_weights = jax.random.split(rng)
    architecture = space.draw(rng_architecture)
    return Network(draw_weights(rng_weights, space, architecture), architecture)


def best_network(space: Space, candidates: int, side_by_side: int = 1) -> Moves:
    """Begins at the best of many networks: stage 1 of GI-NAS.

    Each is drawn once, and judged by the gradient that its images have before it is
    trained, one first-order gradient each. The best is kept with its weights. What is
    drawn follows from its place in the list, so that nothing but the values is kept of
    the others.

    Args:
      space: that candidates are drawn from.
      candidates: N; the first is what the search would have started with.
      side_by_side: candidates that are judged at once. It changes no result, but the
        memory it takes; on CPUs one is as fast as several.

    Raises:
      ValueError: if either number is below 1.
    """
    if candidates < 1:
        raise ValueError(
            f"candidates={candidates}: a search of no network finds none; take at "
            "least 1, which is the network that there is"
        )
    if side_by_side < 1:
        raise ValueError(f"side_by_side={side_by_side} must be at least 1")

    def move(rng: Rng, view: View, judge: Judge, free: PyTree) -> PyTree:
        del view
        first, *others = free

        def draw(index: Array) -> Network:
            drawn = draw_network(jax.random.fold_in(rng, index), space)
            return jax.tree.map(lambda a, b: jnp.where(index == 0, a, b), first, drawn)

        values = judge_each(
            lambda index: judge.matching((draw(index), *others)),
            candidates,
            side_by_side,
        )
        return (draw(jnp.argmin(values)), *others)

    return Moves(first=move)


def judge_each(
    judged: Callable[[Array], Array], candidates: int, side_by_side: int
) -> Array:
    """Maps ``index -> value`` over candidates: [candidates].

    They are dealt to all devices of a victim (`deal_out`), and judged some at a time on
    each. A device's last chunk is filled with its first candidates, as one of another
    length would be a second program.
    """

    def judge(indices: Array) -> Array:
        if side_by_side == 1:
            return jax.lax.map(judged, indices)
        count = len(indices)
        size = min(side_by_side, count)
        filled = indices[jnp.arange(-(-count // size) * size) % count]
        return jax.lax.map(judged, filled, batch_size=size)[:count]

    return deal_out(judge, candidates)


def _settled(architecture: Architecture) -> Architecture:
    still = jax.lax.stop_gradient(architecture)
    return still._replace(**{name: jnp.round(getattr(still, name)) for name in WHOLE})
