"""Images of a study: truths and reconstructions, one array file per cell.

A chunk leaves those of its victims in a file of its own; when all chunks of a cell are
there, they become the cell's file.
"""

import io
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kljax.files import write_bytes
from kljax.studies.manifest import Group


class Images(NamedTuple):
    """Images of some victims of one cell."""

    first: int  # place of the first of them in the cell
    images: np.ndarray  # [n, B, H, W, C], in the order of the truths
    truths: np.ndarray  # [n, B, H, W, C]
    victims: np.ndarray  # [n] index of each one's first example


def write_images(folder: Path, chunk: str, found: Mapping[str, Images]) -> None:
    """Writes what a chunk found, by id of the cell; whole or not at all."""
    arrays = {
        f"{cell}/{field}": value
        for cell, some in found.items()
        for field, value in some._asdict().items()
    }
    _save(_aside(folder) / f"{chunk}.npz", arrays)


def collect(folder: Path, groups: Iterable[Group], failed: Iterable[str]) -> None:
    """Makes the files of all cells whose chunks are there.

    When no cell is left, the files of the chunks are removed.
    """
    failed, complete = set(failed), True
    for group in groups:
        chunks: dict[str, list[str]] = {}
        for chunk in group.chunks:
            for piece in chunk.pieces:
                chunks.setdefault(piece.cell.id, []).append(chunk.name)
        for cell, names in chunks.items():
            target = folder / "reconstructions" / f"{cell}.npz"
            if cell in failed or target.exists():
                continue
            paths = [_aside(folder) / f"{name}.npz" for name in names]
            if all(path.exists() for path in paths):
                _join(target, cell, paths)
            else:
                complete = False
    if complete:
        shutil.rmtree(_aside(folder), ignore_errors=True)


def _join(target: Path, cell: str, paths: Iterable[Path]) -> None:
    parts = []
    for path in paths:
        with np.load(path) as found:
            names = Images._fields
            parts.append(Images(*(found[f"{cell}/{name}"] for name in names)))
    parts.sort(key=lambda part: int(part.first))
    _save(
        target,
        {
            "images": np.concatenate([part.images for part in parts]),
            "truths": np.concatenate([part.truths for part in parts]),
            "victim": np.concatenate([part.victims for part in parts]),
        },
    )


def _aside(folder: Path) -> Path:
    return folder / "reconstructions" / ".chunks"


def _save(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, buffer.getvalue())
