"""Values on the way through a network: their shapes, and what is fed by them."""

import jax
import jax.numpy as jnp

from kljax.core.dependence import trace_dependence
from kljax.core.inputs import InputSpec, zeros_of
from kljax.core.types import Array, Model, Path


def value_shape(
    model: Model, name: str, inputs: InputSpec | tuple[int, ...]
) -> tuple[int, ...]:
    """Finds the shape of a value of one example, without computing anything.

    Args:
      model: the network.
      name: ``"path"`` for a layer's output, ``"path:input"`` for its first argument.
      inputs: what the network takes in; of images the shape [H, W, C] of one will do.

    Raises:
      ValueError: for an unknown, shared or scanned layer.
    """

    def tap() -> Array:
        params, stats = model.init(jax.random.key(0))
        images = zeros_of(inputs, 1)
        return model.apply(params, stats, images, taps=(name,), train=False).taps[name]

    return jax.eval_shape(tap).shape[1:]


def layers_behind(
    model: Model, name: str, inputs: InputSpec | tuple[int, ...]
) -> tuple[Path, ...]:
    """Finds the layers with parameters that a value is fed to, at once or later.

    Args:
      model, name, inputs: see `value_shape`.

    Returns:
      Paths in the order of the parameters' names. A layer whose input cannot be told
      from others, because it is shared or scanned, is among them.
    """
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    layers = list(dict.fromkeys(path.rpartition("/")[0] for path in shapes[0]))
    value = jax.ShapeDtypeStruct((1, *value_shape(model, name, inputs)), jnp.float32)

    def is_behind(layer: Path) -> bool:
        tap = f"{layer}:input"

        def fed(value: Array, params, stats) -> Array:
            return model.apply(
                params,
                stats,
                zeros_of(inputs, 1),
                gates={name: lambda _: (value, jnp.zeros(()))},
                taps=(tap,),
                train=False,
            ).taps[tap]

        try:
            return trace_dependence(fed, value, *shapes).on_argument
        except ValueError:
            return True

    return tuple(layer for layer in layers if is_behind(layer))
