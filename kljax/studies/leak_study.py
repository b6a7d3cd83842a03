"""A leakage study as a study of `kljax sweep`: its arms are the only axis.

So one form of folder is read, reported, joined with others and gone on with, whoever
wrote it. Rows are those of ``rows.csv``; reconstructions lie beside them.
"""

import dataclasses
import shutil
from pathlib import Path

from kljax.core.files import write_json
from kljax.studies.config import LeakConfig
from kljax.studies.leakage import LeakResult
from kljax.studies.row_columns import own_columns
from kljax.studies.scoring import Row
from kljax.studies.store.images import Images, collect, collect_images, write_images
from kljax.studies.store.manifest import Piece, make_manifest, plan
from kljax.studies.store.parts import write_part
from kljax.studies.store.reading import FLOOR
from kljax.studies.sweeps import Grid, Sweep, SweepOptions, make_cell
from kljax.studies.sweeps.fields import DEFAULTS, FIELDS

AXIS = "arm"
PARTS, RECONSTRUCTIONS = "parts", "reconstructions"  # folders of a study


def write_study(folder: Path, name: str, result: LeakResult, rows: list[Row]) -> None:
    """Writes a finished study as `kljax.studies.store.read` reads it.

    Args:
      folder: that is there.
      name: of the study.
      result, rows: of the study, see `kljax.studies.scoring.score_rows`.

    Raises:
      OSError: if it cannot be written; nothing is left of it.
    """
    try:
        _write_parts(folder, name, result, rows)
    except BaseException:
        for part in (PARTS, RECONSTRUCTIONS):
            shutil.rmtree(folder / part, ignore_errors=True)
        raise


def _write_parts(folder: Path, name: str, result: LeakResult, rows: list[Row]) -> None:
    """Writes parts and images, and the manifest last: without it there is no study."""
    config = result.config
    cells = [
        make_cell({AXIS: arm}, dataclasses.replace(config, arms=(arm,)))
        for arm in config.arms
    ]
    manifest = make_manifest(name, as_sweep(config), Grid(tuple(cells), 0, 0))
    groups = plan(manifest)
    arms = dict(zip(config.arms, result.arms, strict=True))
    images_of = {arm: collect_images(one, result) for arm, one in arms.items()}
    rows_of: dict[int, list[Row]] = {}
    for row in rows:
        rows_of.setdefault(row["upload"], []).append(row)
    for group in groups:
        own = own_columns(group.cells[0].config)
        for chunk in group.chunks:
            rows_of_pieces, images = {}, {}
            for piece in chunk.pieces:
                arm = piece.cell.point[AXIS]
                rows_of_pieces[piece.name] = [
                    row
                    for upload in range(piece.first, piece.end)
                    for row in rows_of[upload]
                    if row["arm"] == arms[arm].arm.name or row["arm"].startswith(FLOOR)
                ]
                images[piece.cell.id] = _images_of(piece, images_of[arm])
            write_part(folder, chunk, (AXIS,), rows_of_pieces, own.values())
            write_images(folder, chunk.name, images)
    collect(folder, groups)
    write_json(folder / "manifest.json", manifest)


def _images_of(piece: Piece, found: Images) -> Images:
    some = slice(piece.first, piece.end)
    return Images(
        piece.first,
        found.images[some],
        found.truths[some],
        found.victims[some],
        {name: values[some] for name, values in found.others.items()},
    )


def as_sweep(config: LeakConfig) -> Sweep:
    """Makes the sweep that repeats a study: its arms as an axis, the rest fixed."""
    fixed = {
        name: getattr(config, name)
        for name in FIELDS
        if name != AXIS and getattr(config, name) != getattr(DEFAULTS, name)
    }
    points = {arm: {AXIS: arm} for arm in config.arms}
    return Sweep(fixed, {AXIS: points}, (), SweepOptions(reconstructions=True))
