"""The victim axis: the only room that has one.

Everything else in kljax is written for one victim. `map_victims` runs such a function
for many: a `Layout` says how they are laid over the machine. Layouts are speed
options: results agree to rounding, because a victim draws its randomness from its own
index (`jax.random.fold_in`) and never from its place in a batch.

All layouts work in blocks of equal size, so that one compilation serves any number of
victims, memory stays flat, and a progress bar has something to show.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from kljax.typing import PyTree


@dataclasses.dataclass(frozen=True)
class Layout:
    """How victims are laid over the machine.

    Attributes:
      kind: ``sharded`` (a chunk on each local device), ``chunked`` (one chunk at a
        time), ``vmap`` (all at once) or ``loop`` (one at a time, no batching).
      chunk: victims per chunk and device. On a CPU small chunks win (their work
        stays in the cache); see experiments/speed.md.

    Raises:
      ValueError: for another kind, or a chunk below 1.
    """

    kind: Literal["sharded", "chunked", "vmap", "loop"] = "sharded"
    chunk: int = 8

    def __post_init__(self):
        if self.kind not in LAYOUTS:
            raise ValueError(
                f"unknown layout {self.kind!r}: expected one of {tuple(LAYOUTS)}"
            )
        if not isinstance(self.chunk, int) or self.chunk < 1:
            raise ValueError(f"chunk must be an integer >= 1, got {self.chunk!r}")


class Timing(NamedTuple):
    """Where the seconds went."""

    compile_s: float
    run_s: float
    compilations: int  # made for this call; what was compiled before is not counted


def _devices(layout: Layout) -> int:
    return jax.local_device_count() if layout.kind == "sharded" else 1


def _block_size(layout: Layout, victims: int) -> int:
    devices = _devices(layout)
    chunk = {"vmap": victims, "loop": 1}.get(layout.kind, layout.chunk)
    # No larger than the work: eight victims on two devices are two chunks of four.
    return min(chunk, -(-victims // devices)) * devices


def _looped(fn: Callable) -> Callable:
    return lambda *args: jax.lax.map(lambda one: fn(*one), args)


def _sharded(chunk_fn: Callable) -> Callable:
    mesh = Mesh(np.array(jax.local_devices()), ("victims",))
    spec = PartitionSpec("victims")
    return jax.shard_map(
        chunk_fn, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
    )


def _unsharded(chunk_fn: Callable) -> Callable:
    return chunk_fn


LAYOUTS: dict[str, Callable[[Callable], Callable]] = {
    "sharded": _sharded,
    "chunked": _unsharded,
    "vmap": _unsharded,
    "loop": _unsharded,
}


@functools.lru_cache(maxsize=64)
def _compiled(fn, layout, looped, precision, shapes, tree):
    """Compiles the block form of `fn`, once per shape; arms share what is the same."""
    del precision  # part of the cache's index: what is traced depends on it
    # A chunk of one is looped, too: an axis of length 1 is not free.
    chunk_fn = _looped(fn) if looped or layout.kind == "loop" else jax.vmap(fn)
    block = jax.tree.unflatten(tree, [jax.ShapeDtypeStruct(*leaf) for leaf in shapes])
    start = time.perf_counter()
    compiled = jax.jit(LAYOUTS[layout.kind](chunk_fn)).lower(*block).compile()
    return compiled, time.perf_counter() - start


def map_victims(
    fn: Callable[..., PyTree],
    layout: Layout | None = None,
    *,
    draws: Sequence[Callable[..., PyTree]] = (),
    on_block: Callable[[int], Any] | None = None,
) -> Callable[..., tuple[PyTree, Timing]]:
    """Makes a function of many victims from a function of one.

    Args:
      fn: for ONE victim; its arguments and results are trees of arrays.
      layout: how to run them; None for `Layout()`.
      draws: functions of ONE victim's first argument, and of the draws before, whose
        results come before the arguments of `fn`: random weights, say. They are
        compiled apart, so that arms which draw the same share the compilation, and
        looped over rather than batched: random numbers under `jax.vmap` take three
        times as long to compile.
      on_block: called after each block with the number of victims finished so far.

    Returns:
      A function of ``(*args)``, each array with a leading axis of N victims, which
      computes ``fn(*draws, *args)`` for each. It gives the results as NumPy arrays
      with that axis, and a `Timing`. It compiles once per shape, however many victims
      there are.

    Raises:
      ValueError: when called with no victims, or with unequal numbers of them.
    """
    layout = layout or Layout()

    def mapped(*args: PyTree) -> tuple[PyTree, Timing]:
        args = jax.tree.map(np.asarray, args)
        counts = sorted({len(leaf) for leaf in jax.tree.leaves(args)})
        if len(counts) != 1 or counts[0] < 1:
            raise ValueError(f"expected one number of victims >= 1, got {counts}")
        victims = counts[0]
        size = _block_size(layout, victims)
        start, compile_s, compilations = time.perf_counter(), 0.0, 0

        def call(stage: Callable, looped: bool, *inputs: PyTree) -> PyTree:
            nonlocal compile_s, compilations
            leaves, tree = jax.tree.flatten(inputs)
            shapes = tuple((np.shape(leaf), leaf.dtype) for leaf in leaves)
            precision = jax.config.jax_default_matmul_precision
            misses = _compiled.cache_info().misses
            compiled, seconds = _compiled(
                stage, layout, looped, precision, shapes, tree
            )
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
