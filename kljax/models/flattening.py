"""Which dense layers are fed a flattened picture, or a row of a table as it is."""

from typing import Any

import jax

from kljax.core.inputs import InputSpec, zeros_of
from kljax.core.types import Array, Model, Params, Path, Stats


def flattened_inputs(
    model: Model, inputs: InputSpec | tuple[int, ...]
) -> dict[Path, tuple[int, ...]]:
    """Finds kernels whose input is a picture laid out as a row, or the network's own.

    Args:
      model: the network.
      inputs: what it takes in; of images the shape [H, W, C] of one will do.

    Returns:
      [H, W, C] of the picture, or [D] of the network's input, by the path of the
      kernel. Layers that cannot be tapped are left out, and so are those behind
      anything but a reshape.
    """
    params, stats = jax.eval_shape(model.init, jax.random.key(0))
    found = {}
    for path, leaf in params.items():
        if not path.endswith("/kernel") or len(leaf.shape) != 2:
            continue
        name = f"{path.removesuffix('/kernel')}:input"

        def fed(params: Params, stats: Stats, image: Array, name: str = name) -> Array:
            output = model.apply(
                params, stats, image, taps=(name,), train=False, rngs=jax.random.key(0)
            )
            return output.taps[name]

        try:
            traced = jax.make_jaxpr(fed)(params, stats, zeros_of(inputs, 1)).jaxpr
        except ValueError:  # shared, scanned or unused
            continue
        shape = _shape_before(traced, traced.outvars[0])
        if shape is not None:
            found[path] = shape
    return found


def _shape_before(traced: Any, value: Any) -> tuple[int, ...] | None:
    """Finds the shape [H, W, C] that a value [1, F] was reshaped from.

    Of the input of the network itself it is its own.
    """
    made = {id(out): step for step in traced.eqns for out in step.outvars}
    while id(value) in made and made[id(value)].primitive.name == "copy":
        value = made[id(value)].invars[0]
    # Weights and statistics come before the input.
    if value is traced.invars[-1] and len(value.aval.shape) == 2:
        return tuple(value.aval.shape[1:])
    step = made.get(id(value))
    if step is None or step.primitive.name != "reshape":
        return None
    shape = step.invars[0].aval.shape
    return tuple(shape[1:]) if len(shape) == 4 else None
