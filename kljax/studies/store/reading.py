"""Reading of a study, however far it is: none of it done, some, or all.

A study is read as it lies there, while others may be writing to it: every file in it is
whole, and hidden files are somebody's work in hand.
"""

import collections
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow

from kljax.core.files import DamagedFile, read_arrays
from kljax.metrics import COLUMNS, Column
from kljax.studies.store.failures import read_failures
from kljax.studies.store.manifest import read_manifest
from kljax.studies.store.parts import read_part
from kljax.studies.store.schema import filled, own_columns_in, part_schema

FLOOR = "floor/"  # before the name of a floor in the column `arm`
REMEDY = (
    "remove it; its images are made again if the parts of its cell are removed, too"
)
KEPT = ("images", "truths", "victim")  # arrays of a cell's reconstructions


class Study(NamedTuple):
    """A study, read.

    Attributes:
      folder: where it is.
      manifest: what ``manifest.json`` says: ``axes`` {axis: [labels]}, ``cells``
        [{id, point, config}], ``sweep``, ``versions``, ``device`` and the rest.
      rows: of all parts, see `part_schema`, as they were written: up to schema
        version 3 one per upload (``example`` is null there), since then one per
        image, and since version 7 one per input of several. Those of arms
        ``floor/NAME`` score what is reached without any gradient on that cell's
        victims.
      failures: of cells that raised: ``cell``, ``point``, ``error``, ``traceback``,
        and the ``command`` that reruns it.
      columns: what the rows have, but for ``cell`` and axes: name -> column. Those of
        metrics or attacks of the user's own are as the files describe them.
    """

    folder: Path
    manifest: dict[str, Any]
    rows: pyarrow.Table
    failures: list[dict[str, Any]]
    columns: dict[str, Column]


def read(folder: Path | str) -> Study:
    """Reads a study.

    Rows of cells that the manifest does not have are left out, and so is a row that is
    there twice (the one of the part that comes first by name counts).

    Raises:
      FileNotFoundError: if there is no ``manifest.json``.
      DamagedFile: for a file that is not what was written; it is named.
      ValueError: for a study of a newer kljax.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    rows = _rows(folder, manifest)
    columns = COLUMNS | own_columns_in(rows.schema)
    return Study(folder, manifest, rows, read_failures(folder), columns)


def finished_victims(study: Study) -> dict[str, int]:
    """Counts the victims of every cell whose attack is finished, by id of the cell.

    A victim is an upload, however many rows its examples have. A cell is missing for
    as long as it has fewer than its configuration's ``victims``.
    """
    names = ("cell", "arm", "example", "victim")
    columns = (study.rows[name].to_pylist() for name in names)
    # Each once, though several inputs of an example have a row each.
    uploads = {
        (cell, victim)
        for cell, arm, example, victim in zip(*columns, strict=True)
        if not example and not arm.startswith(FLOOR)
    }
    counted = collections.Counter(cell for cell, _ in uploads)
    return {cell["id"]: counted[cell["id"]] for cell in study.manifest["cells"]}


def missing_cells(study: Study) -> list[dict[str, Any]]:
    """Lists the cells of the manifest which have not all of their rows."""
    finished = finished_victims(study)
    return [
        cell
        for cell in study.manifest["cells"]
        if finished[cell["id"]] < cell["config"]["victims"]
    ]


def read_reconstructions(study: Study, cell: str) -> dict[str, np.ndarray] | None:
    """Reads the reconstructions of a cell; None if they were not kept.

    Returns:
      ``images`` and ``truths`` [N, B, ...] in the same order, that of the uploads
      (column ``upload`` of the rows, from 0): images [H, W, C], tokens [L], or what
      else an example is; of several inputs those of the primary one, and those of
      others as ``images/NAME`` and ``truths/NAME``; ``victim`` [N] index in the
      dataset of each upload's first example; and what searches recorded on the way,
      see `kljax.studies.convergence`.

    Raises:
      DamagedFile: if they are not what was written.
    """
    path = study.folder / "reconstructions" / f"{cell}.npz"
    arrays = read_arrays(path, remedy=REMEDY)
    missing = set(KEPT) - arrays.keys() if arrays is not None else None
    if missing:
        what = f"it lacks {', '.join(sorted(missing))}"
        raise DamagedFile(path, what, remedy=REMEDY)
    if arrays is not None:
        shapes = {name: arrays[name].shape for name in KEPT}
        images, truths, victim = shapes.values()
        if len(images) < 3 or images != truths or victim != images[:1]:
            what = f"its arrays do not belong together: {shapes}"
            raise DamagedFile(path, what, remedy=REMEDY)
    return arrays


def _rows(folder: Path, manifest: dict[str, Any]) -> pyarrow.Table:
    # What begins with a dot is not finished.
    paths = sorted((folder / "parts").glob("[!.]*.parquet"))
    parts = [read_part(path, manifest["axes"]).rows for path in paths]
    # One piece: picking rows out of a table of many is slow.
    own: dict[str, Column] = {}
    for part in parts:
        own |= own_columns_in(part.schema)
    schema = part_schema(manifest["axes"], own.values())
    rows = pyarrow.concat_tables(
        [schema.empty_table(), *(filled(part, schema) for part in parts)]
    ).combine_chunks()
    places = rows.select(["cell", "arm", "victim", "input"]).to_pandas()
    known = places["cell"].isin(cell["id"] for cell in manifest["cells"])
    return rows.filter(pyarrow.array(known & ~places.duplicated()))
