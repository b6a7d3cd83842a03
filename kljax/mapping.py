"""The victim axis: the only room that has one.

Everything else in kljax is written for one victim. `map_victims` runs such a function
for many: a `Layout` says how they are laid over the machine. Layouts are speed
options: results agree to rounding, because a victim draws its randomness from its own
index (`jax.random.fold_in`) and never from its place in a batch.

All layouts work in blocks of equal size, so that one compilation serves any number of
victims, memory stays flat, and a progress bar has something to show.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

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

    kind: str = "sharded"
    chunk: int = 8

    def __post_init__(self):
        if self.kind not in LAYOUTS:
            raise ValueError(
                f"unknown layout {self.kind!r}: expected one of {tuple(LAYOUTS)}"
            )
        if self.chunk < 1:
            raise ValueError(f"chunk must be at least 1, got {self.chunk}")


class Timing(NamedTuple):
    """Where the seconds went."""

    compile_s: float
    run_s: float
    compilations: int


def _devices(layout: Layout) -> int:
    return jax.local_device_count() if layout.kind == "sharded" else 1


def _block_size(layout: Layout, victims: int) -> int:
    devices = _devices(layout)
    chunk = {"vmap": victims, "loop": 1}.get(layout.kind, layout.chunk)
    # No larger than the work: eight victims on two devices are two chunks of four.
    return min(chunk, -(-victims // devices)) * devices


def _sharded(fn: Callable) -> Callable:
    mesh = Mesh(np.array(jax.local_devices()), ("victims",))
    spec = PartitionSpec("victims")
    return jax.shard_map(
        jax.vmap(fn), mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
    )


def _loop(fn: Callable) -> Callable:
    def one(*args: PyTree) -> PyTree:
        result = fn(*jax.tree.map(lambda x: x[0], args))
        return jax.tree.map(lambda x: x[None], result)

    return one


LAYOUTS: dict[str, Callable[[Callable], Callable]] = {
    "sharded": _sharded,
    "chunked": jax.vmap,
    "vmap": jax.vmap,
    "loop": _loop,
}


def map_victims(
    fn: Callable[..., PyTree],
    layout: Layout | None = None,
    *,
    on_block: Callable[[int], Any] | None = None,
) -> Callable[..., tuple[PyTree, Timing]]:
    """Makes a function of many victims from a function of one.

    Args:
      fn: for ONE victim; its arguments and results are trees of arrays.
      layout: how to run them; None for `Layout()`.
      on_block: called after each block with the number of victims finished so far.

    Returns:
      A function of the same arguments, each array with a leading axis of N victims.
      It gives the results as NumPy arrays with that axis, and a `Timing`. It compiles
      once per shape, however many victims there are.

    Raises:
      ValueError: when called with no victims, or with unequal numbers of them.
    """
    layout = layout or Layout()
    block_fn = jax.jit(LAYOUTS[layout.kind](fn))
    compiled: dict[Any, Any] = {}

    def mapped(*args: PyTree) -> tuple[PyTree, Timing]:
        args = jax.tree.map(np.asarray, args)
        counts = sorted({len(leaf) for leaf in jax.tree.leaves(args)})
        if len(counts) != 1 or counts[0] < 1:
            raise ValueError(f"expected one number of victims >= 1, got {counts}")
        victims = counts[0]
        size = _block_size(layout, victims)

        start = time.perf_counter()
        results, compile_s = [], 0.0
        for first in range(0, victims, size):
            # The last block is filled up with its last victim, computed for nothing.
            rows = np.minimum(np.arange(first, first + size), victims - 1)
            block = jax.tree.map(lambda x, rows=rows: x[rows], args)
            shapes = str(jax.tree.map(lambda x: (x.shape, x.dtype), block))
            if shapes not in compiled:
                began = time.perf_counter()
                compiled[shapes] = block_fn.lower(*block).compile()
                compile_s += time.perf_counter() - began
            result = jax.device_get(compiled[shapes](*block))
            done = min(first + size, victims)
            results.append(jax.tree.map(lambda x, n=done - first: x[:n], result))
            if on_block is not None:
                on_block(done)
        run_s = time.perf_counter() - start - compile_s
        joined = jax.tree.map(lambda *parts: np.concatenate(parts), *results)
        return joined, Timing(compile_s, run_s, len(compiled))

    return mapped
