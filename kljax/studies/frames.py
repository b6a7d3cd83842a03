"""Data frames: rows of whatever folder, or result, as pandas has them.

| dtype of a column | in the frame                                                |
|-------------------|-------------------------------------------------------------|
| string            | category, in the order in which the values come; outcomes   |
|                   | and axes of a sweep have an order of their own              |
| int32, int64      | Int32, Int64: whole numbers that may be missing (pandas.NA) |
| bool              | boolean, the same                                           |
| float64           | float64; what is missing is NaN                             |
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kljax.core.files import DamagedFile, brief, read_json, read_text
from kljax.metrics import (
    COLUMNS,
    OUTCOMES,
    RUN_COLUMNS,
    Column,
    by_name,
    column_from_dict,
    names_today,
)
from kljax.studies import run_folder, store
from kljax.studies.leakage import LeakResult
from kljax.studies.row_columns import columns_of
from kljax.studies.scoring import SCHEMA_VERSION, Row, score_rows
from kljax.studies.store.schema import AXIS

if TYPE_CHECKING:
    import pandas

DTYPES = {"int32": "Int32", "int64": "Int64", "bool": "boolean", "float64": "float64"}
REMEDY = "restore it from a copy"


def rows_frame(result: LeakResult) -> "pandas.DataFrame":
    """Scores a finished study (`kljax.score_rows`), and gives its rows as a frame."""
    return make_frame(score_rows(result), columns_of(result.config))


def read_rows(folder: Path | str) -> "pandas.DataFrame":
    """Reads the rows of a folder of ``kljax leak``, ``kljax sweep`` or ``kljax train``.

    Nothing is written. Rows of an older kljax have the columns of today, and nothing in
    those that came later. Rows of a sweep say of which ``cell`` they are, and their
    point in a column ``axis_NAME`` for each axis; those of a training are one per arm
    and round (`kljax.metrics.RUN_COLUMNS`).

    Raises:
      FileNotFoundError: if there are no rows.
      DamagedFile: for a file that is not what was written.
      ValueError: for rows of a newer kljax.
    """
    folder = Path(folder)
    # First: a folder of kljax leak is a study, too, in which each arm has its floors.
    if (folder / "rows.csv").exists():
        return _read_leak(folder)
    if (folder / "manifest.json").exists():
        return study_frame(store.read(folder))
    if (folder / "metrics.csv").exists():
        rows = run_folder.read_rows(folder)
        for row in rows:
            row["excluded"] = " ".join(map(str, row["excluded"]))
        return make_frame(rows, RUN_COLUMNS)
    raise FileNotFoundError(
        f"{str(folder)!r} has no rows: it has no rows.csv of kljax leak, no "
        "manifest.json of kljax sweep and no metrics.csv of kljax train"
    )


def own_columns_of(folder: Path | str) -> dict[str, Column]:
    """Reads what a folder of kljax leak or sweep says of columns of the user's own.

    Raises:
      FileNotFoundError: if it is neither.
      DamagedFile: for a file that is not what was written.
    """
    folder = Path(folder)
    if (folder / "manifest.json").exists():
        columns = store.read(folder).columns
        return {name: at for name, at in columns.items() if name not in COLUMNS}
    path = folder / "config.json"
    config = read_json(path, dict[str, Any], remedy=REMEDY)
    if config is None:
        raise FileNotFoundError(
            f"{str(folder)!r} is no folder of kljax leak or kljax sweep"
        )
    try:
        return by_name(map(column_from_dict, config.get("own_columns", ())))
    except Exception as error:  # whatever stands there instead of columns
        what = f"its own_columns are none ({brief(error)})"
        raise DamagedFile(path, what, remedy=REMEDY) from error


def study_frame(study: store.Study) -> "pandas.DataFrame":
    """Gives the rows of a sweep's study as a frame."""
    axes = study.manifest["axes"]
    frame = _typed(study.rows.to_pandas(integer_object_nulls=True), study.columns)
    orders = {"cell": [cell["id"] for cell in study.manifest["cells"]]}
    orders |= {AXIS + axis: list(labels) for axis, labels in axes.items()}
    ordered = {name: _category(frame[name], order) for name, order in orders.items()}
    return frame.assign(**ordered)


def make_frame(
    rows: Iterable[Row], columns: Mapping[str, Column]
) -> "pandas.DataFrame":
    """Makes a frame of rows that have these columns.

    Raises:
      ValueError: for a value that is none of its column's dtype.
    """
    import pandas

    lines = ({name: row.get(name) for name in columns} for row in rows)
    return _typed(pandas.DataFrame(lines, columns=list(columns), dtype=object), columns)


def _read_leak(folder: Path) -> "pandas.DataFrame":
    import io

    import pandas

    path = folder / "rows.csv"
    text = io.StringIO(read_text(path, remedy=REMEDY), newline="")
    columns = COLUMNS | own_columns_of(folder)
    try:
        # As text: the column says what it is. An empty field is nothing, `nan` is NaN.
        found = pandas.read_csv(text, dtype=str, keep_default_na=False)
        found = found.rename(columns=names_today(columns.values()))
        known = [name for name in found.columns if name in columns]
        if "arm" not in known:
            raise ValueError("it has no column 'arm'")
        found = found[known].mask(found[known] == "", None)
        frame = _typed(found.reindex(columns=list(columns)), columns)
    except Exception as error:  # what pandas raises is of many kinds
        what = f"it has no rows of kljax leak ({brief(error)})"
        raise DamagedFile(path, what, remedy=REMEDY) from error
    newest = frame["schema_version"].max()
    if newest > SCHEMA_VERSION:
        raise ValueError(
            f"{path} is of a newer kljax (rows of version {newest}, this one reads up "
            f"to {SCHEMA_VERSION}): update kljax"
        )
    return frame


def _typed(
    frame: "pandas.DataFrame", columns: Mapping[str, Column]
) -> "pandas.DataFrame":
    """Gives every column the dtype that it is said to have."""
    made = {}
    for name, column in columns.items():
        if column.dtype == "string":
            order = OUTCOMES if name == "outcome" else frame[name].dropna().unique()
            made[name] = _category(frame[name], order)
        else:
            made[name] = _numbers(frame[name], DTYPES[column.dtype])
    return frame.assign(**made)


def _category(values: "pandas.Series", order: Iterable[str]) -> "pandas.Series":
    import pandas

    return values.astype(pandas.CategoricalDtype(list(order)))


def _numbers(values: "pandas.Series", dtype: str) -> "pandas.Series":
    import pandas

    if dtype == "boolean":
        return values.replace({"True": True, "False": False}).astype(dtype)
    if dtype == "float64":
        return values.astype(dtype)
    if pandas.api.types.is_integer_dtype(values):
        return values.astype(dtype)
    # One by one: floats hold whole numbers up to 2**53 alone.
    exact = [pandas.NA if pandas.isna(value) else int(value) for value in values]
    return pandas.Series(pandas.array(exact, dtype), values.index)
