"""Random draws of one program, made together: the same values, compiled much faster.

An initialiser draws each parameter of a network by itself, and derives its random key
by a chain of ``fold_in``. Every one of these is a loop of XLA's, and a network of 20
layers has a hundred, which take longer to compile than an attack takes to run. Here
the random keys of all parameters are derived side by side, and so are the bits: those
of JAX's threefry depend on a random key and on a counter alone.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core
from jax.extend.random import threefry2x32_p

from kljax.core.types import Array, PyTree, Rng

DERIVE, BITS = ("random_fold_in", "random_split"), "random_bits"
# Larger draws are made one by one, and smaller ones up to this many numbers together:
# more would be kept in memory at once.
MOST = 2**20


class Equation(NamedTuple):
    """One equation of a program whose calls have been written out."""

    equation: Any
    inputs: tuple  # literals, or names of values
    outputs: tuple[int, ...]  # names of values


def draw_jointly(function: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """Makes the draws of a function together; its values stay what they are.

    For use inside `jax.jit`. Random keys of another kind than JAX's own threefry are
    drawn from as they were.

    Args:
      function: ``(rng, ...) -> tree of arrays``.
    """

    def drawn(rng: Rng, *others: PyTree) -> PyTree:
        threefry = str(jax.random.key_impl(rng)) in ("fry", "threefry2x32")
        if not threefry or not jax.config.jax_threefry_partitionable:
            return function(rng, *others)
        program, result = jax.make_jaxpr(function, return_shape=True)(rng, *others)
        values: dict[int, Any] = {}
        names = _named(values, [*program.consts, *jax.tree.leaves((rng, *others))])
        inner = program.jaxpr
        scope = dict(zip([*inner.constvars, *inner.invars], names, strict=True))
        written = list(_written_out(inner, scope, values))
        _evaluate(written, values)
        leaves = [_read(_name(v, scope), values) for v in inner.outvars]
        return jax.tree.unflatten(jax.tree.structure(result), leaves)

    return drawn


def _named(values: dict[int, Any], given: list) -> list[int]:
    first = len(values)
    values.update(enumerate(given, first))
    return list(range(first, first + len(given)))


def _name(variable: Any, scope: dict) -> Any:
    return variable if isinstance(variable, core.Literal) else scope[variable]


def _read(name: Any, values: dict[int, Any]) -> Any:
    return name.val if isinstance(name, core.Literal) else values[name]


def _written_out(program: Any, scope: dict, values: dict) -> Iterator[Equation]:
    """Lists the equations of a program, and in place of a call those of what it calls.

    Every value has a name in `values`; it is None there until it is computed.
    """
    for equation in program.eqns:
        inputs = tuple(_name(v, scope) for v in equation.invars)
        if equation.primitive.name in ("jit", "pjit"):
            called = equation.params["jaxpr"]
            names = [*_named(values, list(called.consts)), *inputs]
            variables = [*called.jaxpr.constvars, *called.jaxpr.invars]
            within = dict(zip(variables, names, strict=True))
            yield from _written_out(called.jaxpr, within, values)
            found = [_name(v, within) for v in called.jaxpr.outvars]
            scope.update(zip(equation.outvars, found, strict=True))
            continue
        outputs = _named(values, [None] * len(equation.outvars))
        scope.update(zip(equation.outvars, outputs, strict=True))
        yield Equation(equation, inputs, tuple(outputs))


def _evaluate(written: list[Equation], values: dict[int, Any]) -> None:
    """Computes all values; draws wait until others can be made with them."""
    unknown = {name for step in written for name in step.outputs}

    def ready(step: Equation) -> bool:
        return not any(isinstance(n, int) and n in unknown for n in step.inputs)

    def keep(step: Equation, results: list) -> None:
        values.update(zip(step.outputs, results, strict=True))
        unknown.difference_update(step.outputs)

    while written:
        waiting, bits = [], []
        children: dict[tuple, list[Equation]] = {}
        for step in written:
            primitive, params = (
                step.equation.primitive.name,
                step.equation.params,
            )
            if not ready(step):
                waiting.append(step)
            elif primitive in DERIVE and _scalar(step):
                kind = primitive, params.get("shape")
                children.setdefault(kind, []).append(step)
            elif primitive == BITS and _scalar(step) and params["bit_width"] == 32:
                bits.append(step)
            else:
                keep(step, _bind(step, values))
        for (primitive, shape), group in children.items():
            given = [[_read(n, values) for n in step.inputs] for step in group]
            for step, child in zip(
                group, _derive(primitive, shape, given), strict=True
            ):
                keep(step, [child])
        if children:  # and bits of them may follow
            bits, waiting = [], [*bits, *waiting]
        for group in _grouped(bits):
            rngs = [_read(step.inputs[0], values) for step in group]
            shapes = [step.equation.params["shape"] for step in group]
            for step, drawn in zip(group, _bits(rngs, shapes), strict=True):
                keep(step, [drawn])
        written = waiting


def _scalar(step: Equation) -> bool:
    return all(v.aval.shape == () for v in step.equation.invars)


def _bind(step: Equation, values: dict[int, Any]) -> list:
    primitive = step.equation.primitive
    params = primitive.get_bind_params(step.equation.params)
    results = primitive.bind(*(_read(name, values) for name in step.inputs), **params)
    return list(results) if primitive.multiple_results else [results]


def _derive(primitive: str, shape: Any, given: list[list]) -> Array:
    """Derives random keys from several by one program."""
    rngs, *data = map(list, zip(*given, strict=True))
    if primitive == "random_split":
        return jax.vmap(lambda rng: jax.random.split(rng, shape))(jnp.stack(rngs))
    words = jnp.stack([jnp.asarray(word, jnp.uint32) for word in data[0]])
    return jax.vmap(jax.random.fold_in)(jnp.stack(rngs), words)


def _grouped(bits: list[Equation]) -> Iterator[list[Equation]]:
    group, total = [], 0
    for step in bits:
        size = math.prod(step.equation.params["shape"])
        if group and total + size > MOST:
            yield group
            group, total = [], 0
        group, total = [*group, step], total + size
    if group:
        yield group


def _bits(rngs: list[Rng], shapes: list[tuple[int, ...]]) -> list[Array]:
    """Draws 32 bits for each number of several arrays, as `jax.random.bits` does.

    One array is flat here, too: several axes to count along take XLA, in a batch, four
    times as long to compile.
    """
    sizes = [math.prod(shape) for shape in shapes]

    def joined(parts):
        return jnp.concatenate([jnp.broadcast_to(p, n) for p, n in parts])

    words = jax.random.key_data(jnp.stack(rngs))  # [arrays, 2]
    first, second = (joined(zip(words[:, i], sizes, strict=True)) for i in range(2))
    low = jnp.concatenate([lax.iota(jnp.uint32, n) for n in sizes])
    upper, lower = threefry2x32_p.bind(first, second, jnp.zeros_like(low), low)
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)]
    drawn = jnp.split(upper ^ lower, ends)
    return [part.reshape(shape) for part, shape in zip(drawn, shapes, strict=True)]
