"""The axes of victims and of clients: the only room that has them.

Everything else in kljax is written for one victim and one client. `map_victims` and
`sum_clients` run such a function for many; a `Layout` says how they are laid over the
machine. Layouts are speed options: results agree to rounding, because everybody draws
randomness from an index of their own (`jax.random.fold_in`) and never from a place in
a batch. All layouts work in blocks of equal size, so that one compilation serves any
number, memory stays flat, and a progress bar has something to show.
"""

from kljax.parallel.client_axis import gather_clients, sum_clients
from kljax.parallel.cores import use_all_cores
from kljax.parallel.layout import LAYOUTS, Layout, Timing, fastest_layout
from kljax.parallel.victim_axis import (
    block_memory,
    chunk_program,
    compile_victims,
    hold_programs,
    map_victims,
)

__all__ = [
    "Layout",
    "LAYOUTS",
    "fastest_layout",
    "use_all_cores",
    "Timing",
    "map_victims",
    "block_memory",
    "chunk_program",
    "compile_victims",
    "hold_programs",
    "sum_clients",
    "gather_clients",
]
