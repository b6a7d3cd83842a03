"""Any network with its weights drawn by another initialiser."""

from typing import Any

import jax

from kljax.models.initialisers import Initialiser
from kljax.randomness import derive_rng
from kljax.typing import Model, Params, Path, Rng, Stats

PURPOSES = ("network", "weights")
# Equations that are another program, called with the same arguments.
CALLS = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "remat2")


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
    program, made = jax.make_jaxpr(model.init, return_shape=True)(jax.random.key(0))
    follows = _followers(program.jaxpr, [True] * len(program.jaxpr.invars))
    flags = jax.tree.unflatten(jax.tree.structure(made), follows)
    params, _ = flags
    layers = {name.rpartition("/")[0] for name, drawn in params.items() if drawn}
    return tuple(sorted(name for name in params if name.rpartition("/")[0] in layers))


def _followers(program: Any, inputs: list[bool]) -> list[bool]:
    """Tells which outputs of a jaxpr follow from the inputs that are marked."""
    marked = {v for v, mark in zip(program.invars, inputs, strict=True) if mark}

    def follows(value: Any) -> bool:
        return not hasattr(value, "val") and value in marked  # a literal has a val

    for equation in program.eqns:
        marks = [follows(v) for v in equation.invars]
        inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        if equation.primitive.name in CALLS and inner is not None:
            outputs = _followers(getattr(inner, "jaxpr", inner), marks)
        else:
            outputs = [any(marks)] * len(equation.outvars)
        marked |= {v for v, mark in zip(equation.outvars, outputs, strict=True) if mark}
    return [follows(v) for v in program.outvars]
