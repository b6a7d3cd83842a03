"""Progress of a sweep: what is done so far, and in all."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from kljax.parallel import Timing
from kljax.studies.scoring import first_rows
from kljax.studies.store.manifest import Chunk
from kljax.studies.sweeps.computing import Computed


class Finished(NamedTuple):
    """A chunk that is done, for people who watch.

    Attributes:
      chunk: its name.
      point: where its first cell stands.
      others: how many more cells are in it.
      victims, all_victims: done so far, and in all.
      cells, all_cells: of which all chunks are done, and in all.
      attacks: in this chunk.
      loss: median of the matching losses of its first cell, NaN if there is none.
      timing: of this chunk.
      failed: cells that failed in it.
      workers: that compute; None for this process.
    """

    chunk: str
    point: dict[str, str]
    others: int
    victims: int
    all_victims: int
    cells: int
    all_cells: int
    attacks: int
    loss: float
    timing: Timing
    failed: tuple[str, ...]
    workers: int | None = None


class Report(NamedTuple):
    """What was done, by this process or by all workers together."""

    attacks: int
    compilations: int
    compile_s: float
    run_s: float
    failed: tuple[str, ...]


class Progress:
    """Counts what is done, for people who watch and for the end."""

    def __init__(self, chunks: Iterable[Chunk]):
        self._left: dict[str, int] = {}
        self._all_victims = 0
        for piece in (piece for chunk in chunks for piece in chunk.pieces):
            cell = piece.cell.id
            self._left[cell] = self._left.get(cell, 0) + 1
            self._all_victims += piece.end - piece.first
        self._all_cells = len(self._left)
        self._victims = self._attacks = self._compilations = 0
        self._compile_s = self._run_s = 0.0
        self._failed: list[str] = []

    def add(self, chunk: Chunk, done: Computed) -> Finished:
        """Counts a chunk that is done."""
        rows, timing, failed = done.rows, done.timing, tuple(sorted(done.failed))
        for piece in chunk.pieces:
            self._left[piece.cell.id] -= 1
        first = chunk.pieces[0].cell
        losses = [
            row["matching_loss"]
            for row in rows.get(chunk.pieces[0].name, ())
            if row["matching_loss"] is not None
        ]
        new = [row for some in rows.values() for row in first_rows(some)]
        attacks = sum(1 for row in new if row["attack"] is not None)
        self._victims += sum(piece.end - piece.first for piece in chunk.pieces)
        self._attacks += attacks
        self._compilations += timing.compilations
        self._compile_s += timing.compile_s
        self._run_s += timing.run_s
        self._failed += failed
        return Finished(
            chunk.name,
            first.point,
            len(chunk.pieces) - 1,
            self._victims,
            self._all_victims,
            sum(1 for left in self._left.values() if not left),
            self._all_cells,
            attacks,
            float(np.median(losses)) if losses else float("nan"),
            timing,
            failed,
            done.workers,
        )

    def report(self) -> Report:
        """Says what was done since the start."""
        return Report(
            self._attacks,
            self._compilations,
            self._compile_s,
            self._run_s,
            tuple(self._failed),
        )
