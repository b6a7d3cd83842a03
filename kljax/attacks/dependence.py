"""Dependence: what a traced function's outputs follow from."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from kljax.typing import PyTree


class Dependence(NamedTuple):
    """What a trace of ``fn(argument)`` shows.

    Attributes:
      on_argument: whether any output follows from the argument. A call that the trace
        does not look into (`jax.jit`) passes on whatever it is handed.
      on_axes: names of the mapped axes over which the function reduces.
    """

    on_argument: bool
    on_axes: frozenset[str]


def trace_dependence(fn: Callable[[Any], PyTree], argument: PyTree) -> Dependence:
    """Traces a function, without computing anything, and follows its argument."""
    closed = jax.make_jaxpr(fn)(argument)
    reached = {id(variable) for variable in closed.jaxpr.invars}
    for equation in closed.jaxpr.eqns:
        if any(id(variable) in reached for variable in equation.invars):
            reached.update(id(variable) for variable in equation.outvars)
    axes = (getattr(effect, "name", None) for effect in closed.effects)
    return Dependence(
        any(id(variable) in reached for variable in closed.jaxpr.outvars),
        frozenset(axis for axis in axes if axis is not None),
    )
