"""Images of a study: truths and reconstructions, one array file per cell.

A chunk leaves those of its victims in a file of its own; when all chunks of a cell are
there, they become the cell's file.
"""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kljax.core.files import read_arrays, write_arrays
from kljax.studies import scoring
from kljax.studies.convergence import record_convergence
from kljax.studies.leakage import ArmResult, LeakResult
from kljax.studies.store.manifest import Chunk, Group

REMEDY = "remove it and the part of the same name, and run the sweep again"


class Images(NamedTuple):
    """Images of some victims of one cell.

    Attributes:
      first: place of the first of them in the cell.
      images: [n, B, H, W, C], or tokens [n, B, L]; of several inputs, the primary one.
      truths: of the same shape, in the same order.
      victims: [n] index in the dataset of each one's first example.
      others: of several inputs, those beside the primary one: ``images/NAME`` and
        ``truths/NAME``; and what the search recorded, see
        `kljax.studies.convergence`.
    """

    first: int
    images: np.ndarray
    truths: np.ndarray
    victims: np.ndarray
    others: Mapping[str, np.ndarray] = {}


def collect_images(arm: ArmResult, result: LeakResult, first: int = 0) -> Images:
    """Orders what an arm found like the truths, input by input.

    Args:
      arm: of the study.
      result: some victims of it, or all.
      first: place of the first of them in the cell.
    """
    victims, spec = result.victims, result.dataset.input_spec
    matched = scoring.matched_inputs(arm, result)
    numbers = result.dataset.positions_of(victims.indices[:, 0])
    truths = {name: spec.input_of(victims.inputs, name) for name in matched}
    own = matched.pop(spec.primary), truths.pop(spec.primary)
    others = {f"images/{name}": found for name, found in matched.items()}
    others |= {f"truths/{name}": true for name, true in truths.items()}
    others |= record_convergence(arm, result)
    return Images(first, *own, numbers, others)


REQUIRED = ("first", "images", "truths", "victims")  # fields of `Images`


def write_images(
    folder: Path, chunk: str, images_of_cells: Mapping[str, Images]
) -> None:
    """Writes what a chunk found, by id of the cell; whole or not at all.

    Images of other cells that the chunk found before stay.
    """
    arrays = {
        f"{cell}/{field}": value
        for cell, some in images_of_cells.items()
        for field, value in {**some._asdict(), **some.others}.items()
        if field != "others"
    }
    path = _chunk(folder, chunk)
    _save(path, (read_arrays(path, remedy=REMEDY) or {}) | arrays)


def collect(folder: Path, groups: Iterable[Group]) -> None:
    """Makes the files of all cells whose chunks are there.

    The file of a chunk is removed when all of its cells have theirs; until then it may
    hold the only images of a cell that failed in another chunk.
    """
    left = [chunk for group in groups for chunk in _collect(folder, group)]
    if not left:
        shutil.rmtree(_aside(folder), ignore_errors=True)


def _collect(folder: Path, group: Group) -> list[Chunk]:
    """Makes the files of a group; returns the chunks that are still needed."""
    chunks: dict[str, list[Path]] = {}
    for chunk in group.chunks:
        for piece in chunk.pieces:
            chunks.setdefault(piece.cell.id, []).append(_chunk(folder, chunk.name))
    needed = set()
    for cell, paths in chunks.items():
        target = folder / "reconstructions" / f"{cell}.npz"
        if not target.exists() and not _join(target, cell, paths):
            needed.add(cell)
    left = []
    for chunk in group.chunks:
        if needed.isdisjoint(piece.cell.id for piece in chunk.pieces):
            _chunk(folder, chunk.name).unlink(missing_ok=True)
        else:
            left.append(chunk)
    return left


def _join(target: Path, cell: str, paths: Iterable[Path]) -> bool:
    """Writes the file of a cell; False if images of it are missing."""
    parts = []
    for path in paths:
        arrays = read_arrays(path, remedy=REMEDY) or {}
        own = {
            name.removeprefix(f"{cell}/"): values
            for name, values in arrays.items()
            if name.startswith(f"{cell}/")
        }
        fields = {name: own.pop(name, None) for name in REQUIRED}
        if any(values is None for values in fields.values()):
            return False  # it is not there, or failed in this chunk
        parts.append(Images(**fields, others=own))
    parts.sort(key=lambda part: int(part.first))
    others = _alike(parts)
    _save(
        target,
        {
            "images": np.concatenate([part.images for part in parts]),
            "truths": np.concatenate([part.truths for part in parts]),
            "victim": np.concatenate([part.victims for part in parts]),
            **{n: np.concatenate([p.others[n] for p in parts]) for n in sorted(others)},
        },
    )
    return True


def _alike(parts: list[Images]) -> set[str]:
    """Names what all parts have, in the same form: each may have its own snapshots."""
    forms = [{(n, x.shape[1:]) for n, x in part.others.items()} for part in parts]
    return {name for name, _ in set.intersection(*forms)}


def _chunk(folder: Path, name: str) -> Path:
    return _aside(folder) / f"{name}.npz"


def _aside(folder: Path) -> Path:
    return folder / "reconstructions" / ".chunks"


def _save(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_arrays(path, arrays)
