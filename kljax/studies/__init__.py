"""Studies: configurations, the jobs that they describe, and what is left of a job.

`kljax.studies.leakage` attacks, `kljax.studies.training` trains, and
`kljax.studies.sweeps` runs many leakage studies from one file. `kljax.studies.store`
is the folder of a sweep, `kljax.studies.run_folder` that of a training, and
`kljax.studies.reports` makes pages of them.
"""

_MOVED = (
    "Study",
    "read",
    "finished_victims",
    "missing_cells",
    "read_reconstructions",
    "part_schema",
    "FLOOR",
)


def __getattr__(name: str):
    if name in _MOVED:
        raise AttributeError(f"kljax.studies.{name} is kljax.store.{name} now")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
