"""Any network with its weights drawn by another initialiser."""

import jax

from kljax.core.dependence import trace_dependence
from kljax.core.randomness import derive_rng
from kljax.core.types import Model, Params, Path, Rng, Stats
from kljax.models.initialisers import Initialiser

PURPOSES = ("network", "weights")


def redrawn(model: Model, initialiser: Initialiser) -> Model:
    """Draws the weights of a network by another initialiser.

    A layer of which anything is drawn has all its parameters drawn so, biases too;
    what no random key has a part in stays as it is: scales and shifts of norm layers,
    and weights that were trained before.

    Args:
      model: the network.
      initialiser: such as `kljax.models.uniform` makes.
    """
    shapes, _ = jax.eval_shape(model.init, jax.random.key(0))
    names = drawn_parameters(model)

    def init(rng: Rng) -> tuple[Params, Stats]:
        params, stats = model.init(derive_rng(rng, PURPOSES, "network"))
        rng = derive_rng(rng, PURPOSES, "weights")
        fresh = {
            name: initialiser(
                jax.random.fold_in(rng, i), shapes[name].shape, shapes[name].dtype
            )
            for i, name in enumerate(names)
        }
        return {**params, **fresh}, stats

    return model._replace(init=init) if names else model


def drawn_parameters(model: Model) -> tuple[Path, ...]:
    """Lists the parameters of layers that draw any of theirs, sorted."""
    params, _ = trace_dependence(model.init, jax.random.key(0)).outputs
    layers = {name.rpartition("/")[0] for name, drawn in params.items() if drawn}
    return tuple(sorted(name for name in params if name.rpartition("/")[0] in layers))
