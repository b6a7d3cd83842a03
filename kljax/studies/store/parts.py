"""Parts: the finished rows of a study, one Parquet file per chunk."""

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow
import pyarrow.compute
import pyarrow.parquet

from kljax.core.files import DamagedFile, brief, write_bytes
from kljax.metrics import Column
from kljax.studies.scoring import SCHEMA_VERSION, Row
from kljax.studies.store.manifest import Chunk
from kljax.studies.store.schema import filled, own_columns_in, part_schema

# In the metadata of a part: what it holds, and under which names.
PIECES, NAMES = b"kljax_pieces", b"kljax_columns"
REMEDY = "run the sweep again, which puts it aside and makes it anew"


class Part(NamedTuple):
    """A part, read.

    Attributes:
      rows: in today's columns, and those of the user's own; what the file does not
        have is null.
      pieces: names of what is in it (`Piece.name`).
    """

    rows: pyarrow.Table
    pieces: frozenset[str]


def part_path(folder: Path, name: str) -> Path:
    """Says where the part of a chunk is."""
    return folder / "parts" / f"{name}.parquet"


def write_part(
    folder: Path,
    chunk: Chunk,
    axes: Sequence[str],
    rows: Mapping[str, Sequence[Row]],
    own: Iterable[Column] = (),
) -> None:
    """Writes a part whole or not at all.

    Args:
      folder: of the study.
      chunk: that becomes the part.
      axes: of the sweep.
      rows: of those of its pieces that are finished, by `Piece.name`.
      own: columns of the rows beside kljax's.

    Raises:
      OSError: if it cannot be written; nothing is left of it.
    """
    pieces = [piece for piece in chunk.pieces if piece.name in rows]
    lines = [
        row
        | {"cell": piece.cell.id}
        | {f"axis_{axis}": piece.cell.point.get(axis) for axis in axes}
        for piece in pieces
        for row in rows[piece.name]
    ]
    schema = part_schema(axes, own)
    said = {PIECES: [piece.name for piece in pieces], NAMES: schema.names}
    schema = schema.with_metadata({k: json.dumps(v).encode() for k, v in said.items()})
    table = pyarrow.Table.from_pylist(lines, schema=schema)
    buffer = io.BytesIO()
    # Without checksums a byte that flipped on the disk is another score.
    pyarrow.parquet.write_table(table, buffer, write_page_checksum=True)
    path = part_path(folder, chunk.name)
    path.parent.mkdir(exist_ok=True)
    write_bytes(path, buffer.getvalue())


def read_part(path: Path, axes: Sequence[str]) -> Part:
    """Reads a part.

    Raises:
      OSError: if it is not there, or cannot be read.
      DamagedFile: if it is not what was written.
      ValueError: if it is of a newer kljax.
    """
    # Read here: Arrow takes "a=b" in the name of a folder for a column.
    content = io.BytesIO(path.read_bytes())
    try:
        with pyarrow.parquet.ParquetFile(
            content, page_checksum_verification=True
        ) as file:
            part = file.read()
        said = part.schema.metadata or {}
        pieces = frozenset(json.loads(said.get(PIECES, b"[]")))
        if NAMES in said and json.loads(said[NAMES]) != part.column_names:
            raise ValueError("its columns have other names than were written")
        schema = part_schema(axes, own_columns_in(part.schema).values())
        rows = filled(part, schema)
        cells = {piece.rpartition(":")[0] for piece in pieces}
        if pieces and cells != set(rows["cell"].to_pylist()):
            raise ValueError("its rows are not those of the cells that it names")
    # What a damaged file raises is of many kinds.
    except Exception as error:
        what = f"it is no part of a study ({brief(error)})"
        raise DamagedFile(path, what, remedy=REMEDY) from error
    newest = pyarrow.compute.max(rows["schema_version"]).as_py() or 0
    if newest > SCHEMA_VERSION:
        raise ValueError(
            f"{path} is of a newer kljax (rows of version {newest}, this one reads up "
            f"to {SCHEMA_VERSION}): update kljax"
        )
    return Part(rows, pieces)


def rows_in(folder: Path, chunk: Chunk, axes: Sequence[str]) -> dict[str, list[Row]]:
    """Reads the rows of every piece that is finished; see `pieces_in`."""
    part = _sound_part(folder, chunk.name, axes)
    if part is None:
        return {}
    by_cell: dict[str, list[Row]] = {}
    for row in part.rows.to_pylist():
        by_cell.setdefault(row["cell"], []).append(row)
    there = [piece for piece in chunk.pieces if piece.name in part.pieces]
    return {piece.name: by_cell[piece.cell.id] for piece in there}


def pieces_in(folder: Path, name: str, axes: Sequence[str]) -> frozenset[str]:
    """Lists what a finished part holds; nothing if it is missing or damaged.

    A damaged part is moved aside, to ``NAME.parquet.corrupt``, and made again.
    """
    part = _sound_part(folder, name, axes)
    return frozenset() if part is None else part.pieces


def _sound_part(folder: Path, name: str, axes: Sequence[str]) -> Part | None:
    path = part_path(folder, name)
    try:
        part = read_part(path, axes)
    except FileNotFoundError:
        return None
    except DamagedFile:
        part = None
    if part is None or not part.pieces:
        path.replace(path.with_name(f"{path.name}.corrupt"))
        return None
    return part
