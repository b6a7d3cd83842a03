"""Parts: the finished rows of a study, one Parquet file per chunk."""

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow
import pyarrow.parquet

from kljax.files import write_bytes
from kljax.scoring import Row
from kljax.studies.schema import part_schema
from kljax.sweeps import Cell

PIECES = b"kljax_pieces"  # in the metadata of a part: what it holds


def part_path(folder: Path, name: str) -> Path:
    """Says where the part of a chunk is."""
    return folder / "parts" / f"{name}.parquet"


def write_part(
    folder: Path,
    name: str,
    axes: Sequence[str],
    rows: Sequence[tuple[Cell, Row]],
    pieces: Iterable[str],
) -> None:
    """Writes a part whole or not at all.

    Args:
      folder: of the study.
      name: of the chunk.
      axes: of the sweep.
      rows: each with the cell that it is of.
      pieces: names of what is in it (`Piece.name`).

    Raises:
      OSError: if it cannot be written; nothing is left of it.
    """
    lines = [
        row
        | {"cell": cell.id}
        | {f"axis_{axis}": cell.point.get(axis) for axis in axes}
        for cell, row in rows
    ]
    schema = part_schema(axes)
    schema = schema.with_metadata({PIECES: json.dumps(list(pieces)).encode()})
    table = pyarrow.Table.from_pylist(lines, schema=schema)
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer)
    path = part_path(folder, name)
    path.parent.mkdir(exist_ok=True)
    write_bytes(path, buffer.getvalue())


def pieces_in(folder: Path, name: str) -> frozenset[str]:
    """Lists what a finished part holds; nothing if it is missing or corrupted.

    A corrupted part is moved aside, to ``NAME.parquet.corrupt``, and made again.
    """
    path = part_path(folder, name)
    if not path.exists():
        return frozenset()
    try:
        # All of it is read: a file cut short may have a sound beginning.
        with pyarrow.parquet.ParquetFile(path) as file:
            table = file.read()
        return frozenset(json.loads(table.schema.metadata[PIECES]))
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, TypeError):
        path.rename(path.with_name(f"{path.name}.corrupt"))
        return frozenset()
