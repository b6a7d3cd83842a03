"""Dependence: what a function's outputs follow from, read off its trace."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from kljax.core.types import PyTree

# Equations of a jaxpr that are another program, called with the same arguments.
CALLS = ("jit", "pjit", "closed_call", "core_call", "remat2", "custom_jvp_call")


class Dependence(NamedTuple):
    """What a trace of ``function(argument, *others)`` shows.

    Attributes:
      outputs: a tree like the function's, of bools: which leaves follow from the first
        argument. What is not called but repeated or chosen (a scan, a conditional)
        passes on whatever it is handed. A product with a literal 0 passes nothing on.
      on_axes: names of the mapped axes over which the function reduces.
    """

    outputs: PyTree
    on_axes: frozenset[str]

    @property
    def on_argument(self) -> bool:
        """Tells whether any output follows from the first argument."""
        return any(jax.tree.leaves(self.outputs))


def trace_dependence(
    function: Callable[..., PyTree], argument: PyTree, *others: PyTree
) -> Dependence:
    """Traces a function, without computing anything, and follows its first argument.

    Args:
      function: ``(argument, *others) -> tree``.
      argument, others: arrays, or their shapes.
    """
    closed, result = jax.make_jaxpr(function, return_shape=True)(argument, *others)
    count = len(jax.tree.leaves(argument))
    marks = [i < count for i in range(len(closed.jaxpr.invars))]
    followers = _followers(closed.jaxpr, marks)
    axes = (getattr(effect, "name", None) for effect in closed.effects)
    return Dependence(
        jax.tree.unflatten(jax.tree.structure(result), followers),
        frozenset(axis for axis in axes if axis is not None),
    )


def _followers(program: Any, inputs: list[bool]) -> list[bool]:
    """Tells which outputs of a jaxpr follow from the inputs that are marked."""
    marked = {v for v, mark in zip(program.invars, inputs, strict=True) if mark}

    def is_marked(value: Any) -> bool:
        return not hasattr(value, "val") and value in marked  # a literal has a val

    for equation in program.eqns:
        marks = [is_marked(v) for v in equation.invars]
        inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        if equation.primitive.name in CALLS and inner is not None:
            outputs = _followers(getattr(inner, "jaxpr", inner), marks)
        else:
            passed = any(marks) and not _is_nothing(equation)
            outputs = [passed] * len(equation.outvars)
        marked |= {v for v, mark in zip(equation.outvars, outputs, strict=True) if mark}
    return [is_marked(v) for v in program.outvars]


def _is_nothing(equation: Any) -> bool:
    """Tells whether an equation is a product with a literal 0."""
    literals = [v.val for v in equation.invars if hasattr(v, "val")]
    return equation.primitive.name == "mul" and not all(map(np.any, literals))
