"""Replaced inputs: what a client drew, as it is looked for by an attacker."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from kljax.attacks.attack import Unknown
from kljax.attacks.setting import Setting
from kljax.core.types import Array, Private, PyTree, Rng
from kljax.threat import View


def unknown_mixing(setting: Setting, draw: Callable[[Rng], Private]) -> Unknown:
    """Looks for how a batch was mixed (`kljax.defences.mixing.Mixing`).

    Weights [B, B + P] are the softmax over each row of what is free, from N(0, 1).
    Where mixtures are masked, signs [B, H, W, C] are its hyperbolic tangent, from
    N(0, 1). Nothing says which weights are 0, or how many.

    Args:
      setting: of the attack.
      draw: ``rng -> Private``, what a client draws, of which the shapes are used.

    Raises:
      ValueError: for a mask of other inputs than images.
    """
    drawn = jax.eval_shape(draw, jax.random.key(0)).secret
    shapes = {"weights": drawn.matrix.shape}
    if drawn.mask is not None:
        shapes["signs"] = (drawn.matrix.shape[0], *setting.task.image_shape)

    def start(rng: Rng, view: View) -> tuple[dict[str, Array], PyTree]:
        rngs = jax.random.split(rng, len(shapes))
        free = {
            name: jax.random.normal(own, shape)
            for own, (name, shape) in zip(rngs, shapes.items(), strict=True)
        }
        # Of its own kind; all that is in it is replaced.
        return free, draw(rng)

    def decode(free: dict[str, Array], fixed: Private) -> Private:
        signs = jnp.tanh(free["signs"]) if "signs" in free else None
        weights = jax.nn.softmax(free["weights"], axis=-1)
        return fixed._replace(secret=fixed.secret._replace(matrix=weights, mask=signs))

    return Unknown(start, decode)


def unknown_concealing(setting: Setting, draw: Callable[[Rng], Private]) -> Unknown:
    """Looks for images beside a batch (`kljax.defences.dcs.Concealing`).

    Images [B, H, W, C] are free, from N(1/2, 1/4). The targets of their proxies
    [B, Kc] are the softmax of what is free, from N(0, 1).

    Args:
      setting, draw: see `unknown_mixing`.

    Raises:
      ValueError: for other inputs than images, and targets that are no classes.
    """
    examples = setting.threat.knowledge.examples
    shapes = {
        "images": (examples, *setting.task.image_shape),
        "targets": (examples, setting.task.num_classes),
    }

    def start(rng: Rng, view: View) -> tuple[dict[str, Array], PyTree]:
        rngs = jax.random.split(rng, len(shapes))
        free = {
            name: jax.random.normal(own, shape)
            for own, (name, shape) in zip(rngs, shapes.items(), strict=True)
        }
        return free | {"images": 0.5 + free["images"] / 4}, draw(rng)

    def decode(free: dict[str, Array], fixed: Private) -> Private:
        targets = jax.nn.softmax(free["targets"], axis=-1)
        concealing = fixed.secret._replace(proxy=free["images"], targets=targets)
        return fixed._replace(secret=concealing)

    return Unknown(start, decode)
