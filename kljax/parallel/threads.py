"""Work of the host that is done side by side in threads: tracing, compiling.

XLA compiles without the interpreter's lock, and mostly on one core.
"""

import collections
import contextlib
import os
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax


class Once:
    """Makes values once: who asks for one that is being made waits for it.

    Args:
      most: values that are kept; the one that was asked for longest ago goes first.
        Within `hold` more are.
    """

    def __init__(self, most: int):
        self._most, self._lock = most, threading.Lock()
        self._holders = 0
        self._futures: collections.OrderedDict[Hashable, Future] = (
            collections.OrderedDict()
        )

    def get(self, name: Hashable, make: Callable[[], Any]) -> tuple[Any, bool]:
        """Gives the value of a name, and whether this call has made it.

        Whoever waits for a value that cannot be made gets the same error, and whoever
        comes later tries again.
        """
        with self._lock:
            future = self._futures.get(name)
            new = future is None
            if new:
                future = self._futures[name] = Future()
                self._evict()
            else:
                self._futures.move_to_end(name)
        if new:
            try:
                future.set_result(make())
            except BaseException as error:
                with self._lock:
                    # It may have been evicted, and another may be making it anew.
                    if self._futures.get(name) is future:
                        del self._futures[name]
                future.set_exception(error)
                raise
        return future.result(), new

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Evicts nothing within the context, however many values there are."""
        with self._lock:
            self._holders += 1
        try:
            yield
        finally:
            with self._lock:
                self._holders -= 1
                self._evict()

    def clear(self) -> None:
        """Forgets every value, unless within `hold`."""
        with self._lock:
            if not self._holders:
                self._futures.clear()

    def _evict(self) -> None:
        while not self._holders and len(self._futures) > self._most:
            self._futures.popitem(last=False)


def side_by_side(calls: Sequence[Callable[[], Any]]) -> Iterator[Any]:
    """Makes calls in as many threads as there are cores.

    JAX's matmul precision, which belongs to a thread, is the caller's in all of them.

    Yields:
      What each call gives, in their order, as soon as it is there.

    Raises:
      Whatever a call raises, when its turn comes. Calls that have not begun by then
      are not made, and those that have are waited for.
    """
    workers = max(1, min(len(calls), os.cpu_count() or 1))
    pool = ThreadPoolExecutor(workers, thread_name_prefix="side_by_side")
    try:
        for future in [pool.submit(_as_caller(call)) for call in calls]:
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def beside(call: Callable[[], Any]) -> Iterator[Callable[[], Any]]:
    """Makes a call in a thread of its own, while the context does something else.

    JAX's matmul precision is that of whoever enters the context. A call that has begun
    is waited for when the context is left, whatever happens inside.

    Yields:
      What waits for the call, and gives what it gives or raises what it raises.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="beside") as pool:
        yield pool.submit(_as_caller(call)).result


def _as_caller(call: Callable[[], Any]) -> Callable[[], Any]:
    """Makes a call that has the matmul precision of this thread in any other."""
    precision = jax.config.jax_default_matmul_precision

    def run() -> Any:
        with jax.default_matmul_precision(precision):
            return call()

    return run
