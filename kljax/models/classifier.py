"""The classifier of a network of which nobody says where it is."""

import jax

from kljax.core.inputs import InputSpec
from kljax.core.types import Array, Model, Params, Path, Stats


def find_classifier(model: Model, inputs: InputSpec) -> Path:
    """Finds the one dense layer that gives as many numbers as the network.

    Args:
      model: the network.
      inputs: what it takes in.

    Raises:
      ValueError: where there is none, or more than one.
    """
    params, stats = jax.eval_shape(model.init, jax.random.key(0))

    def outputs(params: Params, stats: Stats) -> Array:
        return model.apply(
            params, stats, inputs.zeros(1), train=False, rngs=jax.random.key(0)
        ).logits

    width = jax.eval_shape(outputs, params, stats).shape[-1]
    layers = [
        path.removesuffix("/kernel")
        for path, leaf in params.items()
        if path.endswith("/kernel") and len(leaf.shape) == 2 and leaf.shape[1] == width
    ]
    if len(layers) != 1:
        raise ValueError(
            f"the classifier is not told: {', '.join(layers) or 'no dense layer'} of "
            f"{', '.join(params)} give {width} numbers; name it, classifier=PATH"
        )
    return layers[0]
