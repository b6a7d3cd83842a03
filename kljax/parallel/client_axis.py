"""The client axis: what one client gives is summed, what it keeps stays apart."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kljax.core.types import Array, PyTree
from kljax.parallel.layout import Layout, Timing, fastest_layout

AXIS = "clients"


def sum_clients(
    fn: Callable[..., tuple[PyTree, PyTree]], layout: Layout | None = None
) -> Callable[..., tuple[PyTree, Timing]]:
    """Makes a function of many clients from a function of one.

    Clients come in blocks, each fetched from the host, run, added to running sums and
    given back before the next but one is fetched: device memory holds two blocks,
    however many clients there are.

    Args:
      fn: ``(shared, *client) -> (summed, kept)`` for ONE client. ``shared`` is the
        same for all (the server's model), ``client`` what one client holds;
        ``summed`` is added up over clients, ``kept`` belongs to the client.
      layout: how to run them; None for `fastest_layout`. The spread layouts use the
        devices of all processes (`jax.distributed`); client i then always belongs to
        process ``i % process_count``, whose host has its state.

    Returns:
      A function ``(shared, cohort, fetch, keep, on_block=None) -> (sums, Timing)``:

      - ``cohort`` [n]: whole numbers that name the clients, the same on all processes;
      - ``fetch(ids [b]) -> client``: a tuple of trees of host arrays with a leading
        axis [b], for clients of this process;
      - ``keep(ids [b], kept)``: takes host arrays with a leading axis [b];
      - ``on_block(done)``: told how many clients of this process are finished;
      - ``sums`` is ``summed`` over the whole cohort, the same on all processes.

      It compiles once per shape, however many clients there are.

    Raises:
      ValueError: when called with an empty cohort, or in several processes with a
        layout that is not spread.
    """
    layout = layout or fastest_layout("clients")
    cache: dict[Any, Any] = {}
    chunk = _looped(fn) if layout.looped else _batched(fn)

    def summed(
        shared: PyTree,
        cohort: np.ndarray,
        fetch: Callable[[np.ndarray], tuple[PyTree, ...]],
        keep: Callable[[np.ndarray, PyTree], Any],
        on_block: Callable[[int], Any] | None = None,
    ) -> tuple[PyTree, Timing]:
        cohort, processes = np.asarray(cohort), jax.process_count()
        if len(cohort) < 1:
            raise ValueError("the cohort is empty: a round needs a client")
        if processes > 1 and not layout.spread:
            raise ValueError(
                f"layout {layout.kind!r} uses one device, and there are {processes} "
                "processes: take 'sharded' or 'sharded_loop'"
            )
        start, compile_s, compilations = time.perf_counter(), 0.0, 0
        # By its number and not by its place: a client's state stays on one host.
        owners = cohort % processes
        local_ids = cohort[owners == jax.process_index()]
        # The largest share, so that all processes make the same number of calls; a
        # process without a client runs fillers.
        share = int(np.bincount(owners, minlength=processes).max())
        size = layout.block(share, jax.local_device_count())
        mesh = _mesh(layout)
        everywhere = NamedSharding(mesh, PartitionSpec())
        split = NamedSharding(mesh, PartitionSpec(AXIS))
        shared = _put(shared, everywhere)
        sums, waiting = None, None
        for first in range(0, share, size):
            live = np.arange(first, first + size) < len(local_ids)
            # The last block is filled up with the last client, computed for nothing.
            filled = local_ids if len(local_ids) else cohort[:1]
            rows = np.minimum(np.arange(first, first + size), len(filled) - 1)
            client = fetch(filled[rows])
            inputs = shared, _put(live, split), _put(client, split)
            shapes = jax.tree.map(lambda x: (x.shape, x.dtype), inputs)
            precision = jax.config.jax_default_matmul_precision
            variant = (precision, str(shapes))
            if variant not in cache:
                began = time.perf_counter()
                spread = _over_devices(chunk, mesh) if layout.spread else chunk
                cache[variant] = jax.jit(spread).lower(*inputs).compile()
                compile_s += time.perf_counter() - began
                compilations += 1
            part, kept = cache[variant](*inputs)
            sums = part if sums is None else jax.tree.map(jnp.add, sums, part)
            # Only now wait for the block before: its successor is under way.
            _settle(waiting, keep, on_block)
            waiting = (
                local_ids[first : first + size],
                kept,
                min(first + size, len(local_ids)),
            )
        _settle(waiting, keep, on_block)
        sums = jax.tree.map(lambda x: np.asarray(x.addressable_data(0)), sums)
        run_s = time.perf_counter() - start - compile_s
        return sums, Timing(compile_s, run_s, compilations)

    return summed


def gather_clients(ids: np.ndarray, rows: PyTree) -> tuple[np.ndarray, PyTree]:
    """Puts what clients of all processes have given side by side.

    Every process calls it, be it with no client.

    Args:
      ids [m]: whole numbers that name the clients of this process, each once.
      rows: trees of host arrays with a leading axis [m], of the same shapes and dtypes
        in all processes but for that axis.

    Returns:
      All ids [n] in ascending order, and the rows [n] in theirs; the same in every
      process, whatever the order and the process of a client.
    """
    ids = np.asarray(ids)
    if jax.process_count() > 1:
        counts = multihost_utils.process_allgather(np.asarray(len(ids)))
        here = np.arange(max(counts)) < counts[:, None]

        def gathered(x: np.ndarray) -> np.ndarray:
            # Of one shape in all processes.
            missing = [(0, max(counts) - len(x)), *[(0, 0)] * (np.ndim(x) - 1)]
            every = multihost_utils.process_allgather(np.pad(np.asarray(x), missing))
            return np.asarray(every)[here]

        ids, rows = gathered(ids), jax.tree.map(gathered, rows)
    order = np.argsort(ids)
    return ids[order], jax.tree.map(lambda x: np.asarray(x)[order], rows)


def _settle(waiting, keep, on_block) -> None:
    """Hands the finished clients of a block back, fillers left out."""
    if waiting is None:
        return
    ids, states, done = waiting
    states = jax.tree.map(lambda x: _local(x)[: len(ids)], states)
    if len(ids):
        keep(ids, states)
        if on_block is not None:
            on_block(done)


def _put(tree: PyTree, sharding: NamedSharding) -> PyTree:
    """Puts host arrays on the devices; each process gives its own rows."""
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree
    )


def _local(array: Array) -> np.ndarray:
    """Fetches this process's rows of an array that is split over all devices."""
    shards = {s.index[0].start or 0: s.data for s in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def _mesh(layout: Layout) -> Mesh:
    devices = jax.devices() if layout.spread else jax.local_devices()[:1]
    return Mesh(np.array(devices), (AXIS,))


def _one(fn: Callable) -> Callable:
    def one(shared, alive, client):
        summed, kept = fn(shared, *client)
        # A choice and not a product: a filler's NaN times zero is NaN.
        return jax.tree.map(lambda x: jnp.where(alive, x, 0), summed), kept

    return one


def _batched(fn: Callable) -> Callable:
    one = _one(fn)

    def chunk(shared, live, clients):
        summed, kept = jax.vmap(one, in_axes=(None, 0, 0))(shared, live, clients)
        return jax.tree.map(lambda x: jnp.sum(x, axis=0), summed), kept

    return chunk


def _looped(fn: Callable) -> Callable:
    one = _one(fn)

    def chunk(shared, live, clients):
        def step(sums, inputs):
            summed, kept = one(shared, *inputs)
            return jax.tree.map(jnp.add, sums, summed), kept

        first = jax.tree.map(lambda x: x[0], (live, clients))
        shapes, _ = jax.eval_shape(one, shared, *first)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return jax.lax.scan(step, zeros, (live, clients))

    return chunk


def _over_devices(chunk: Callable, mesh: Mesh) -> Callable:
    def summed(shared, live, clients):
        sums, kept = chunk(shared, live, clients)
        return jax.lax.psum(sums, AXIS), kept

    split, whole = PartitionSpec(AXIS), PartitionSpec()
    return jax.shard_map(
        summed,
        mesh=mesh,
        in_specs=(whole, split, split),
        out_specs=(whole, split),
        check_vma=False,
    )
