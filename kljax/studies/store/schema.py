"""The columns of a part: which cell a row is of, where that stands, and its scores."""

import json
from collections.abc import Iterable

import pyarrow

from kljax.metrics import (
    COLUMNS,
    Column,
    column_from_dict,
    column_to_dict,
    names_today,
)

AXIS = "axis_"  # before the name of an axis in the name of its column
MEANS = b"kljax_column"  # in the metadata of a field: the column, where it is not ours


def part_schema(axes: Iterable[str], own: Iterable[Column] = ()) -> pyarrow.Schema:
    """Makes the schema of a part of a study with these axes.

    First ``cell``, then one string column ``axis_NAME`` per axis, then
    `kljax.metrics.COLUMNS`, then those of the user's `own`, which the schema describes:
    a reader need not have the user's modules. NaN and infinities are values, null is no
    value.
    """
    fields = [pyarrow.field("cell", pyarrow.string())]
    fields += [pyarrow.field(AXIS + name, pyarrow.string()) for name in axes]
    fields += [_field(column) for column in COLUMNS.values()]
    for column in own:
        said = {MEANS: json.dumps(column_to_dict(column))}
        fields.append(_field(column).with_metadata(said))
    return pyarrow.schema(fields)


def own_columns_in(schema: pyarrow.Schema) -> dict[str, Column]:
    """Reads what a schema says of columns that are not kljax's.

    Raises:
      ValueError: for a description that is none.
      TypeError: see `column_from_dict`.
    """
    said = {field.name: (field.metadata or {}).get(MEANS) for field in schema}
    return {
        name: column_from_dict(json.loads(text))
        for name, text in said.items()
        if text is not None and name not in COLUMNS
    }


def _field(column: Column) -> pyarrow.Field:
    return pyarrow.field(column.name, pyarrow.type_for_alias(column.dtype))


def filled(part: pyarrow.Table, schema: pyarrow.Schema) -> pyarrow.Table:
    """Brings a part into a schema; columns that it has not are null."""
    today = names_today(COLUMNS.values())
    part = part.rename_columns([today.get(name, name) for name in part.column_names])
    columns = [
        part[field.name].cast(field.type)
        if field.name in part.column_names
        else pyarrow.nulls(len(part), field.type)
        for field in schema
    ]
    return pyarrow.table(columns, schema=schema)
