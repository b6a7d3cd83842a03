"""The columns of a part: which cell a row is of, where that stands, and its scores."""

from collections.abc import Iterable

import pyarrow

from kljax.metrics import COLUMNS

AXIS = "axis_"  # before the name of an axis in the name of its column


def part_schema(axes: Iterable[str]) -> pyarrow.Schema:
    """Makes the schema of a part of a study with these axes.

    First ``cell``, then one string column ``axis_NAME`` per axis, then
    `kljax.metrics.COLUMNS`. NaN and infinities are values, null is no value.
    """
    named = [("cell", pyarrow.string())]
    named += [(AXIS + name, pyarrow.string()) for name in axes]
    named += [(c.name, pyarrow.type_for_alias(c.dtype)) for c in COLUMNS.values()]
    return pyarrow.schema(named)
