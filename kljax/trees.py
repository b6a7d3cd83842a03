"""Trees of arrays: their leaves by name, and what they follow from."""

from collections.abc import Callable
from typing import Any

import jax

from kljax.typing import PyTree

# Equations of a jaxpr that are another program, called with the same arguments.
CALLS = ("jit", "pjit", "closed_call", "core_call", "remat2", "custom_jvp_call")


def named(tree: PyTree) -> dict[str, Any]:
    """Lists the leaves of a tree by where they are, such as ``model/fc/kernel``.

    Names of the way are joined by a slash; those of a dictionary may hold some of their
    own. A tree that is a leaf has the name ``""``.
    """
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def follows(function: Callable[..., PyTree], argument: PyTree, *others: PyTree):
    """Tells which leaves of a function's result follow from its first argument.

    Nothing is computed.

    Args:
      function: ``(argument, *others) -> tree``.
      argument, others: arrays, or their shapes.

    Returns:
      A tree like the function's, of bools.
    """
    program, made = jax.make_jaxpr(function, return_shape=True)(argument, *others)
    count = len(jax.tree.leaves(argument))
    marks = [i < count for i in range(len(program.jaxpr.invars))]
    found = _followers(program.jaxpr, marks)
    return jax.tree.unflatten(jax.tree.structure(made), found)


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
