"""Sweeps: many leakage studies from one short file, and which of them go together."""

from kljax.studies.sweeps.cell import (
    Cell,
    cell_from_json,
    cell_to_json,
    groups,
    identity,
    make_cell,
    program_of,
    signature,
)
from kljax.studies.sweeps.comparison import Difference, difference, merge
from kljax.studies.sweeps.grid import Grid, expand
from kljax.studies.sweeps.sweep import (
    Sweep,
    SweepOptions,
    parse_sweep,
    read_sweep,
    sweep_to_dict,
)

__all__ = [
    "Sweep",
    "SweepOptions",
    "read_sweep",
    "parse_sweep",
    "sweep_to_dict",
    "Grid",
    "expand",
    "Cell",
    "make_cell",
    "cell_to_json",
    "cell_from_json",
    "identity",
    "signature",
    "program_of",
    "groups",
    "Difference",
    "difference",
    "merge",
]
