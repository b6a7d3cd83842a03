"""The victim axis: a function of one victim becomes a function of many."""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from kljax.core.types import PyTree
from kljax.parallel.layout import Layout, Timing, fastest_layout


def _looped(fn: Callable) -> Callable:
    return lambda *args: jax.lax.map(lambda one: fn(*one), args)


def _sharded(chunk_fn: Callable) -> Callable:
    mesh = Mesh(np.array(jax.local_devices()), ("victims",))
    spec = PartitionSpec("victims")
    return jax.shard_map(
        chunk_fn, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
    )


@functools.lru_cache(maxsize=64)
def _compiled(fn, layout, looped, precision, shapes, tree):
    """Compiles the block form of `fn`, once per shape; arms share what is the same."""
    del precision  # part of the cache's index: what is traced depends on it
    # A chunk of one is looped, too: an axis of length 1 is not free.
    chunk_fn = _looped(fn) if looped or layout.looped else jax.vmap(fn)
    block = jax.tree.unflatten(tree, [jax.ShapeDtypeStruct(*leaf) for leaf in shapes])
    start = time.perf_counter()
    block_fn = _sharded(chunk_fn) if layout.spread else chunk_fn
    compiled = jax.jit(block_fn).lower(*block).compile()
    return compiled, time.perf_counter() - start


def _block_of(stage: Callable, layout: Layout, looped: bool, inputs: PyTree):
    """Compiles one stage for a block of inputs, unless that was done before."""
    leaves, tree = jax.tree.flatten(inputs)
    # Of 64 bits JAX takes 32, and newer ones warn if asked for more.
    shapes = tuple(
        (np.shape(leaf), jax.dtypes.canonicalize_dtype(leaf.dtype)) for leaf in leaves
    )
    precision = jax.config.jax_default_matmul_precision
    return _compiled(stage, layout, looped, precision, shapes, tree)


def _size(layout: Layout, victims: int, full: bool) -> int:
    devices = jax.local_device_count()
    return layout.block(max(victims, devices * layout.chunk if full else 0), devices)


def block_memory(
    fn: Callable[..., PyTree],
    layout: Layout,
    args: PyTree,
    *,
    draws: Sequence[Callable[..., PyTree]] = (),
) -> tuple[int, Timing]:
    """Computes the bytes that one call of the compiled block takes on a device.

    Arguments, results and temporaries of `fn`, as the compiler states them. The call
    is compiled, as `map_victims` will need it, and not run.

    Args:
      fn, draws: see `map_victims`.
      layout: how victims are run.
      args: of some victims, with their leading axis; a block is full, whatever their
        number.

    Returns:
      The bytes, and what the compilation took if there was none before.
    """
    size = _size(layout, len(jax.tree.leaves(args)[0]), True)

    def rows(x):
        dtype = jax.dtypes.canonicalize_dtype(x.dtype)
        return jax.ShapeDtypeStruct((size, *np.shape(x)[1:]), dtype)

    block = jax.tree.map(rows, jax.tree.map(np.asarray, args))
    drawn: list[PyTree] = []
    for draw in draws:
        drawn.append(jax.eval_shape(jax.vmap(draw), block[0], *drawn))
    misses = _compiled.cache_info().misses
    compiled, seconds = _block_of(fn, layout, False, (*drawn, *block))
    new = _compiled.cache_info().misses - misses
    memory = compiled.memory_analysis()
    taken = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
    )
    return taken, Timing(seconds * new, 0.0, new)


def map_victims(
    fn: Callable[..., PyTree],
    layout: Layout | None = None,
    *,
    draws: Sequence[Callable[..., PyTree]] = (),
    full: bool = False,
    on_block: Callable[[int], Any] | None = None,
) -> Callable[..., tuple[PyTree, Timing]]:
    """Makes a function of many victims from a function of one.

    Args:
      fn: for ONE victim; its arguments and results are trees of arrays.
      layout: how to run them; None for `fastest_layout`.
      draws: functions of ONE victim's first argument, and of the draws before, whose
        results come before the arguments of `fn`: random weights, say. They are
        compiled apart, so that arms which draw the same share the compilation, and
        looped over rather than batched: random numbers under `jax.vmap` take three
        times as long to compile.
      full: whether a block has its full size however few victims are given, so that
        calls with few and with many share a compilation.
      on_block: called after each block with the number of victims finished so far.

    Returns:
      A function of ``(*args)``, each array with a leading axis of N victims, which
      computes ``fn(*draws, *args)`` for each. It gives the results as NumPy arrays
      with that axis, and a `Timing`. It compiles once per shape, however many victims
      there are.

    Raises:
      ValueError: when called with no victims, or with unequal numbers of them.
    """
    layout = layout or fastest_layout("victims")

    def mapped(*args: PyTree) -> tuple[PyTree, Timing]:
        args = jax.tree.map(np.asarray, args)
        counts = sorted({len(leaf) for leaf in jax.tree.leaves(args)})
        if len(counts) != 1 or counts[0] < 1:
            raise ValueError(f"expected one number of victims >= 1, got {counts}")
        victims = counts[0]
        size = _size(layout, victims, full)
        start, compile_s, compilations = time.perf_counter(), 0.0, 0

        def call(stage: Callable, looped: bool, *inputs: PyTree) -> PyTree:
            nonlocal compile_s, compilations
            misses = _compiled.cache_info().misses
            compiled, seconds = _block_of(stage, layout, looped, inputs)
            if _compiled.cache_info().misses > misses:
                compile_s, compilations = compile_s + seconds, compilations + 1
            return compiled(*inputs)

        results = []
        for first in range(0, victims, size):
            # The last block is filled up with its last victim, computed for nothing.
            rows = np.minimum(np.arange(first, first + size), victims - 1)
            block = jax.tree.map(lambda x, rows=rows: x[rows], args)
            drawn: list[PyTree] = []
            for draw in draws:
                drawn.append(call(draw, True, block[0], *drawn))
            result = jax.device_get(call(fn, False, *drawn, *block))
            done = min(first + size, victims)
            results.append(jax.tree.map(lambda x, n=done - first: x[:n], result))
            if on_block is not None:
                on_block(done)
        run_s = time.perf_counter() - start - compile_s
        joined = jax.tree.map(lambda *parts: np.concatenate(parts), *results)
        return joined, Timing(compile_s, run_s, compilations)

    return mapped
