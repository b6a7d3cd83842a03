"""Studies: the folder of a sweep.

``manifest.json`` says which cells there are, ``parts/`` holds a Parquet file for each
chunk that is finished, ``failures/`` what cells raised, ``reconstructions/`` their
images, where the sweep keeps them.
"""

from kljax.studies.store.reading import (
    FLOOR,
    Study,
    finished_victims,
    missing_cells,
    read,
    read_reconstructions,
)
from kljax.studies.store.schema import part_schema

__all__ = [
    "Study",
    "read",
    "finished_victims",
    "missing_cells",
    "read_reconstructions",
    "part_schema",
    "FLOOR",
]
