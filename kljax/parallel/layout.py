"""Layouts: how many victims or clients are laid over the machine."""

import dataclasses
from typing import Literal, NamedTuple

import jax


class _Kind(NamedTuple):
    """What a layout's name means.

    Attributes:
      spread: over all devices, a chunk on each.
      looped: one after another inside a chunk, instead of batched.
    """

    spread: bool
    looped: bool


MOST = 2**31 - 1  # in a chunk; its device could not count more

LAYOUTS: dict[str, _Kind] = {
    "sharded": _Kind(spread=True, looped=False),
    "sharded_loop": _Kind(spread=True, looped=True),
    "chunked": _Kind(spread=False, looped=False),
    "vmap": _Kind(spread=False, looped=False),
    "loop": _Kind(spread=False, looped=True),
}


@dataclasses.dataclass(frozen=True)
class Layout:
    """How victims or clients are laid over the machine.

    Attributes:
      kind: ``sharded`` (a chunk on each device, batched), ``sharded_loop`` (a chunk on
        each device, one after another), ``chunked`` (one chunk at a time), ``vmap``
        (all at once) or ``loop`` (one at a time, no batching).
      chunk: how many per chunk and device. On a CPU small chunks win (their work
        stays in the cache); see experiments/speed/dlg.md.

    Raises:
      ValueError: for another kind, or a chunk below 1.
    """

    kind: Literal["sharded", "sharded_loop", "chunked", "vmap", "loop"] = "sharded"
    chunk: int = 8

    def __post_init__(self):
        if self.kind not in LAYOUTS:
            raise ValueError(
                f"unknown layout {self.kind!r}: expected one of {tuple(LAYOUTS)}"
            )
        whole = isinstance(self.chunk, int) and not isinstance(self.chunk, bool)
        if not whole or self.chunk < 1:
            raise ValueError(f"chunk must be an integer >= 1, got {self.chunk!r}")
        if self.chunk > MOST:
            raise ValueError(
                f"chunk must be an integer from 1 to {MOST}, got one of "
                f"{self.chunk.bit_length()} bits"
            )

    @property
    def spread(self) -> bool:
        """Tells whether all devices work."""
        return LAYOUTS[self.kind].spread

    @property
    def looped(self) -> bool:
        """Tells whether a chunk is worked off one after another."""
        return LAYOUTS[self.kind].looped

    def block(self, count: int, devices: int) -> int:
        """Computes how many of `count` are run by one call."""
        devices = devices if self.spread else 1
        chunk = {"vmap": count, "loop": 1}.get(self.kind, self.chunk)
        # No larger than the work: eight on two devices are two chunks of four.
        return min(chunk, -(-count // devices)) * devices


def fastest_layout(work: Literal["victims", "clients"]) -> Layout:
    """Chooses the layout for this backend, from experiments/speed/.

    Measured on two CPU cores and on one NVIDIA H200. On a TPU nothing has been, and
    the choice is a guess.

    On a CPU victims and clients are worked off one after another on each core: their
    weights are their own, so that a batch of them is one small product each, and what
    one needs stays in the cache. A GPU gains from batching attacks up to hundreds (256
    were up to a tenth faster than 64; fewer need less memory), and clients less.
    """
    layouts = {
        ("cpu", "victims"): Layout("sharded_loop", 8),
        ("cpu", "clients"): Layout("sharded_loop", 8),
        ("gpu", "victims"): Layout("sharded", 64),
        ("gpu", "clients"): Layout("sharded", 16),
    }
    return layouts.get((jax.default_backend(), work), Layout("sharded", 8))


class Timing(NamedTuple):
    """Where the seconds went."""

    compile_s: float
    run_s: float
    compilations: int  # made for this call; what was compiled before is not counted

    def after(self, other: "Timing") -> "Timing":
        """Adds what was spent before."""
        return Timing(*map(sum, zip(self, other, strict=True)))
