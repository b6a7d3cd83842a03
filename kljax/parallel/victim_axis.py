"""The victim axis: a function of one victim becomes a function of many."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kljax.core.spare_devices import SPARE
from kljax.core.types import PyTree
from kljax.parallel.layout import Layout, Timing, fastest_layout
from kljax.parallel.threads import Once, side_by_side

# Arms, and later calls, share what is the same. A program on a CPU takes hundreds of
# memory maps, and Linux ends a process that wants more than 65,530 of them.
_compilations = Once(most=16)


def _looped(fn: Callable) -> Callable:
    return lambda *args: jax.lax.map(lambda one: fn(*one), args)


def chunk_program(fn: Callable[..., PyTree], layout: Layout) -> Callable[..., PyTree]:
    """Makes of a program of one victim that of a chunk, as one device runs it."""
    return _looped(fn) if layout.looped else jax.vmap(fn)


def _sharing(chunk_of: Callable, fn: Callable) -> Callable:
    """Makes the program of a chunk whose first argument is the same for all victims.

    It is what `fn` is given last.
    """

    def run(shared: PyTree, *args: PyTree) -> PyTree:
        return chunk_of(lambda *one: fn(*one, shared))(*args)

    return run


def _sharded(chunk_fn: Callable, shares: bool, size: int) -> Callable[..., Any]:
    """Makes what lowers a block for arguments: a chunk of it on each device.

    Args:
      chunk_fn: of what one device has.
      shares: whether its first argument is the same for all victims.
      size: of the block. If it is below the number of devices, it divides that, and
        each victim has several.
    """
    devices, axes = np.array(jax.local_devices()), ("victims",)
    if size < len(devices):
        devices, axes = devices.reshape(size, -1), (*axes, SPARE)
    mesh, spec = Mesh(devices, axes), PartitionSpec("victims")

    def run(*args: PyTree) -> PyTree:
        specs = (PartitionSpec(), *(spec,) * (len(args) - 1)) if shares else spec
        return jax.shard_map(
            chunk_fn, mesh=mesh, in_specs=specs, out_specs=spec, check_vma=False
        )(*args)

    def lower(*block: PyTree) -> Any:
        apart, whole = NamedSharding(mesh, spec), NamedSharding(mesh, PartitionSpec())
        given = (whole if shares else apart, *(apart,) * (len(block) - 1))
        # Said, as XLA would have an argument that nothing depends on be whole.
        program = jax.jit(run, in_shardings=given, out_shardings=apart)
        return program.lower(*block)

    return lower


def _block_of(
    stage: Callable, layout: Layout, looped: bool, inputs: PyTree, shares: bool = False
) -> tuple[Any, float]:
    """Compiles one stage for a block of inputs, unless that was done before.

    Args:
      stage: of one victim.
      layout: how victims are run.
      looped: whatever the layout says.
      inputs: of the block.
      shares: whether the first of them is the same for all victims.

    Returns:
      The compiled stage, and the seconds that this call has compiled for: 0 if another
      has done it.
    """
    leaves, tree = jax.tree.flatten(inputs)
    # Of 64 bits JAX takes 32, and newer ones warn if asked for more.
    shapes = tuple(
        (np.shape(leaf), jax.dtypes.canonicalize_dtype(leaf.dtype)) for leaf in leaves
    )
    # What is traced depends on the precision.
    precision = jax.config.jax_default_matmul_precision

    def compiled() -> tuple[Any, float]:
        # A chunk of one is looped, too: an axis of length 1 is not free.
        def chunk_of(fn: Callable) -> Callable:
            return _looped(fn) if looped else chunk_program(fn, layout)

        chunk_fn = _sharing(chunk_of, stage) if shares else chunk_of(stage)
        block = jax.tree.unflatten(tree, [jax.ShapeDtypeStruct(*s) for s in shapes])
        start = time.perf_counter()
        spread = layout.spread
        size = shapes[-1][0][0]  # shared arrays come first
        lower = _sharded(chunk_fn, shares, size) if spread else jax.jit(chunk_fn).lower
        program = lower(*block).compile()
        return program, time.perf_counter() - start

    name = stage, layout, looped, precision, shapes, tree, shares
    (program, seconds), new = _compilations.get(name, compiled)
    return program, seconds * new


def _size(layout: Layout, victims: int, full: bool) -> int:
    devices = jax.local_device_count()
    if layout.spread and not full and devices % victims == 0:
        return victims  # each has a device, or several
    return layout.block(max(victims, devices * layout.chunk if full else 0), devices)


def _shapes(layout: Layout, args: PyTree, *, full: bool) -> PyTree:
    """Tells the shapes of a block of victims, whose arguments are given."""
    size = _size(layout, len(jax.tree.leaves(args)[0]), full)

    def rows(x):
        dtype = jax.dtypes.canonicalize_dtype(x.dtype)
        return jax.ShapeDtypeStruct((size, *np.shape(x)[1:]), dtype)

    return jax.tree.map(rows, jax.tree.map(np.asarray, args))


def _first(shared: PyTree) -> tuple[tuple[PyTree, ...], bool]:
    """Gives what comes before the inputs of a block, and whether anything does."""
    return ((), False) if shared is None else ((shared,), True)


def block_memory(
    fn: Callable[..., PyTree],
    layout: Layout,
    args: PyTree,
    *,
    draws: Sequence[Callable[..., PyTree]] = (),
    shared: PyTree = None,
) -> tuple[int, Timing]:
    """Computes the bytes that one call of the compiled block takes on a device.

    Arguments, results and temporaries of `fn`, as the compiler states them. The call
    is compiled, as `map_victims` will need it, and not run.

    Args:
      fn, draws, shared: see `map_victims`.
      layout: how victims are run.
      args: of some victims, with their leading axis; a block is full, whatever their
        number.

    Returns:
      The bytes, and what the compilation took if there was none before.
    """
    block = _shapes(layout, args, full=True)
    drawn: list[PyTree] = []
    for draw in draws:
        drawn.append(jax.eval_shape(jax.vmap(draw), block[0], *drawn))
    first, shares = _first(shared)
    inputs = (*first, *drawn, *block)
    compiled, seconds = _block_of(fn, layout, False, inputs, shares)
    memory = compiled.memory_analysis()
    taken = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
    )
    return taken, Timing(seconds, 0.0, int(seconds > 0))


def hold_programs() -> AbstractContextManager[None]:
    """Keeps what is compiled within the context until its end.

    Otherwise only the last programs are kept, and with many arms those that
    `compile_victims` has made would be gone before `map_victims` runs them.
    """
    return _compilations.hold()


def forget_programs() -> None:
    """Forgets all that `map_victims` has compiled."""
    _compilations.clear()


def compile_victims(
    calls: Sequence[tuple[Callable[..., PyTree], Sequence[Callable], PyTree]],
    layout: Layout | None = None,
    *,
    shared: Sequence[PyTree] = (),
) -> Iterator[Timing]:
    """Compiles what calls of `map_victims` will need, side by side, and runs nothing.

    Called within `hold_programs`, with `map_victims`, nothing is compiled twice.

    Args:
      calls: `fn`, its draws and the arguments of each, see `map_victims`.
      layout: as there.
      shared: of each call, as there; () where no call has any.

    Yields:
      For each call, in order and as soon as it is compiled: the seconds that were
      waited for it since the one before, and what was compiled for it alone. They add
      up to the time by the clock.
    """
    layout = layout or fastest_layout("victims")

    def compiling(fn, draws, args, common: PyTree = None) -> Callable[[], int]:
        block = _shapes(layout, args, full=False)
        first, shares = _first(common)

        def run() -> int:
            drawn, spent = [], []
            for draw in draws:
                program, seconds = _block_of(draw, layout, True, (block[0], *drawn))
                drawn.append(program.out_info)
                spent.append(seconds)
            inputs = (*first, *drawn, *block)
            spent.append(_block_of(fn, layout, False, inputs, shares)[1])
            return sum(seconds > 0 for seconds in spent)

        return run

    last = time.perf_counter()
    common = shared or [None] * len(calls)
    pairs = zip(calls, common, strict=True)
    for compilations in side_by_side([compiling(*call, one) for call, one in pairs]):
        now = time.perf_counter()
        yield Timing(now - last, 0.0, compilations)
        last = now


def map_victims(
    fn: Callable[..., PyTree],
    layout: Layout | None = None,
    *,
    draws: Sequence[Callable[..., PyTree]] = (),
    full: bool = False,
    on_block: Callable[[int], Any] | None = None,
    shared: PyTree = None,
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
      shared: tree of arrays that is the same for all victims, and there once: `fn` is
        given it last. None where there is none.

    Where the victims are fewer than a spread layout's devices, and divide these, each
    has several, unless `full`. They compute the same, but for what
    `kljax.core.spare_devices.deal_out` deals to them.

    Returns:
      A function of ``(*args)``, each array with a leading axis of N victims, which
      computes ``fn(*draws, *args)`` for each. It gives the results as NumPy arrays
      with that axis, and a `Timing`. It compiles once per shape, however many victims
      there are.

    Raises:
      ValueError: when called with no victims, or with unequal numbers of them.
    """
    layout = layout or fastest_layout("victims")
    first, shares = _first(shared)

    def mapped(*args: PyTree) -> tuple[PyTree, Timing]:
        args = jax.tree.map(np.asarray, args)
        counts = sorted({len(leaf) for leaf in jax.tree.leaves(args)})
        if len(counts) != 1 or counts[0] < 1:
            raise ValueError(f"expected one number of victims >= 1, got {counts}")
        victims = counts[0]
        size = _size(layout, victims, full)
        start, compile_s, compilations = time.perf_counter(), 0.0, 0

        def call(
            stage: Callable, looped: bool, *inputs: PyTree, shares: bool = False
        ) -> PyTree:
            nonlocal compile_s, compilations
            compiled, seconds = _block_of(stage, layout, looped, inputs, shares)
            compile_s, compilations = compile_s + seconds, compilations + (seconds > 0)
            return compiled(*inputs)

        results = []
        for begin in range(0, victims, size):
            # The last block is filled up with its last victim, computed for nothing.
            rows = np.minimum(np.arange(begin, begin + size), victims - 1)
            block = jax.tree.map(lambda x, rows=rows: x[rows], args)
            drawn: list[PyTree] = []
            for draw in draws:
                drawn.append(call(draw, True, block[0], *drawn))
            inputs = (*first, *drawn, *block)
            result = jax.device_get(call(fn, False, *inputs, shares=shares))
            done = min(begin + size, victims)
            results.append(jax.tree.map(lambda x, n=done - begin: x[:n], result))
            if on_block is not None:
                on_block(done)
        run_s = time.perf_counter() - start - compile_s
        joined = jax.tree.map(lambda *parts: np.concatenate(parts), *results)
        return joined, Timing(compile_s, run_s, compilations)

    return mapped
