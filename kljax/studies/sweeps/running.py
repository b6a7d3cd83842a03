"""Running a sweep: what compiles together runs together, part by part.

Seeds, private keys, strengths of defences, step sizes and victims are data of one
compiled function; whatever else differs makes another group. Each chunk of a group ends
as one part of the study's folder before the next begins.
"""

import dataclasses
import weakref
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from kljax.core.checks import check_text
from kljax.core.claims import claim_folder
from kljax.core.files import DamagedFile
from kljax.core.memory import machine_memory
from kljax.core.registry import own_functions
from kljax.core.types import PyTree
from kljax.data import Dataset
from kljax.parallel import Layout, Timing, block_memory, fastest_layout, map_victims
from kljax.parallel.processes import ALONE, Place
from kljax.studies import scoring
from kljax.studies.builder.one_victim import Attacked
from kljax.studies.builder.study import ArmAttack, Study, build_study
from kljax.studies.leakage import ArmResult, LeakResult
from kljax.studies.row_columns import own_columns
from kljax.studies.scoring import Floors, Row
from kljax.studies.store import images
from kljax.studies.store.failures import forget_failures, read_failures, write_failure
from kljax.studies.store.layouts import LayoutNotKept, keep_layout, read_layout
from kljax.studies.store.manifest import (
    Chunk,
    Group,
    Piece,
    make_folder,
    make_manifest,
    open_study,
    plan,
)
from kljax.studies.store.parts import pieces_in, rows_in, write_part
from kljax.studies.sweeps import Cell, expand, read_sweep
from kljax.studies.sweeps.progress import Finished, Progress, Report

SHARE = 0.5  # of the memory that there is, if no budget is given


def sweep(
    file: str | Path,
    folder: str | Path,
    *,
    part: int | None = None,
    place: Place = ALONE,
    retry_failed: bool = False,
    layout: Layout | None = None,
    memory: float | None = None,
    on_chunk: Callable[[Finished], Any] = lambda finished: None,
) -> Report:
    """Runs a sweep file, or goes on with its study.

    `kljax.studies.store.read` reads what is in the folder, finished or not.

    Args:
      file: in TOML, see `kljax.studies.sweeps`.
      folder: of the study, to make, to go on with, or to extend.
      part: see `kljax.studies.store.manifest.open_study`.
      place: of this process, where several share the work.
      retry_failed: whether cells that failed before are tried again.
      layout, memory, on_chunk: see `run_study`.

    Raises:
      ValueError: for anything in the file that does not exist or does not fit.
      FileExistsError: if the folder is of something else, or in use by another job.
      OSError: if it cannot be written; what is finished stays finished.
    """
    check_text("folder", str(folder))
    read, folder = read_sweep(file), Path(folder)
    grid = expand(read)
    make_manifest(folder.name, read, grid, part)  # what is wrong leaves no folder
    make_folder(folder)
    # Whoever is refused must not have extended the study before.
    with claim_folder(folder, place.process, place.processes):
        manifest = open_study(folder, read, grid, part=part)
        return run_study(
            folder,
            manifest,
            process=place.process,
            processes=place.processes,
            retry_failed=retry_failed,
            layout=layout,
            memory=memory,
            on_chunk=on_chunk,
        )


def run_study(
    folder: Path,
    manifest: dict[str, Any],
    *,
    process: int = 0,
    processes: int = 1,
    retry_failed: bool = False,
    layout: Layout | None = None,
    memory: float | None = None,
    on_chunk: Callable[[Finished], Any] = lambda finished: None,
) -> Report:
    """Runs what is not finished of a study, or this process's part of it.

    Chunk n of the whole study belongs to process n modulo P. Processes share nothing
    but the folder, in which each writes files of its own.

    Args:
      folder, manifest: the study, see `kljax.studies.store.manifest.open_study`.
      process, processes: the number of this process, of how many.
      retry_failed: whether cells that failed before are tried again. The record of a
        failure stays until all of the cell is there.
      layout: how victims are laid over the machine, at most; None for
        `fastest_layout`. What a group was begun with stays.
      memory: bytes that a compiled block may take, all local devices together; None
        for half of what there is.
      on_chunk: called after each chunk.

    Raises:
      ValueError: for a process that there is not.
      OSError: if the folder cannot be written, or the disk is full; what is finished
        stays finished.
    """
    if not 0 <= process < processes:
        raise ValueError(f"process {process} is not one of {processes}, from 0 on")
    axes = tuple(manifest["axes"])
    keep = manifest["sweep"]["options"].get("reconstructions", False)
    recorded = {failure["cell"] for failure in read_failures(folder)}
    failed = set() if retry_failed else set(recorded)
    groups = plan(manifest, folder)
    work, number = [], 0
    for group in groups:
        mine = []
        for chunk in group.chunks:
            if number % processes == process and not finished(
                folder, chunk, axes, failed
            ):
                mine.append(chunk)
            number += 1
        if mine:
            work.append((group, mine))
    progress, floors = Progress(work), _Floors()
    for group, chunks in work:
        runner = _Runner(folder, group, layout, memory, floors)
        for chunk in chunks:
            # What is finished stays, whatever becomes of the rest of its part.
            there = rows_in(folder, chunk, axes)
            left = tuple(p for p in chunk.pieces if p.name not in there)
            done = runner.run(chunk._replace(pieces=left), failed)
            if keep:
                images.write_images(folder, chunk.name, done.images)
            if done.rows:
                own = own_columns(group.cells[0].config)  # one signature, one attack
                write_part(folder, chunk, axes, there | done.rows, own.values())
            # Not before the part: killed in between, the same chunk is run again.
            for cell, error in done.failed.values():
                write_failure(folder, cell, error)
            new = tuple(sorted(done.failed))
            failed.update(new)
            on_chunk(progress.add(chunk, done.rows, done.timing, new))
    if keep:
        images.collect(folder, groups)
    if recorded:
        forget_failures(folder, recorded - _unfinished(folder, groups, axes, recorded))
    return progress.report()


def finished(
    folder: Path, chunk: Chunk, axes: Sequence[str], failed: Iterable[str]
) -> bool:
    """Tells whether all of a chunk is in its part, but for cells that failed."""
    failed = set(failed)
    wanted = {p.name for p in chunk.pieces if p.cell.id not in failed}
    return wanted <= pieces_in(folder, chunk.name, axes)


def _unfinished(
    folder: Path, groups: Iterable[Group], axes: Sequence[str], cells: set[str]
) -> set[str]:
    """Finds which of `cells` have not all of their victims in parts."""
    missing = set()
    for chunk in (chunk for group in groups for chunk in group.chunks):
        wanted = {p.name: p.cell.id for p in chunk.pieces if p.cell.id in cells}
        if wanted:
            there = pieces_in(folder, chunk.name, axes)
            missing |= {wanted[name] for name in wanted.keys() - there}
    return missing


class _Done(NamedTuple):
    """A chunk's results, before they are written."""

    rows: dict[str, list[Row]]  # by name of the piece
    images: dict[str, images.Images]  # by id of the cell
    timing: Timing
    failed: dict[str, tuple[Cell, Exception]]  # by id of the cell


class _Runner:
    """Runs the chunks of one group with one compiled function."""

    def __init__(
        self,
        folder: Path,
        group: Group,
        layout: Layout | None,
        memory: float | None,
        floors: "_Floors",
    ):
        self._folder, self._group, self._floors = folder, group, floors
        self._most, self._memory = layout, memory
        self._first: Study | None = None  # whose functions all cells share
        self._layout: Layout | None = None
        self._studies: dict[str, Study] = {}

    def run(self, chunk: Chunk, failed: Iterable[str]) -> _Done:
        """Runs a chunk; a cell that raises does not stop the others."""
        failed, new = set(failed), {}
        sound: list[Piece] = []
        here = {piece.cell.id for piece in chunk.pieces}
        self._studies = {c: p for c, p in self._studies.items() if c in here}
        for piece in chunk.pieces:
            if piece.cell.id in failed or piece.cell.id in new:
                continue
            try:
                self._prepare(piece.cell)
            except Exception as error:
                new[piece.cell.id] = piece.cell, error
            else:
                sound.append(piece)
        try:
            attacked, timing = self._attack(sound)
        except (LayoutNotKept, DamagedFile):  # the folder's fault, and no cell's
            raise
        except Exception as error:
            if len(sound) > 1:
                # One of them is to blame: alone, the others get through.
                return self._apart(sound, failed, new)
            new |= {p.cell.id: (p.cell, error) for p in sound}
            sound, attacked, timing = [], [], Timing(0.0, 0.0, 0)
        rows, found = {}, {}
        for piece, result in zip(sound, attacked, strict=True):
            # What is attacked need not be attacked again because another has no score.
            try:
                rows[piece.name] = self._floors.rows(result)
                found[piece.cell.id] = _images(piece, result)
            except Exception as error:
                rows.pop(piece.name, None)
                new[piece.cell.id] = piece.cell, error
        return _Done(rows, found, timing, new)

    def _apart(self, pieces: list[Piece], failed: set[str], new: dict) -> _Done:
        parts = [self.run(Chunk(p.cell.id, (p,)), failed | {*new}) for p in pieces]
        return _Done(
            {name: rows for part in parts for name, rows in part.rows.items()},
            {cell: found for part in parts for cell, found in part.images.items()},
            _sum(part.timing for part in parts),
            new | {cell: why for part in parts for cell, why in part.failed.items()},
        )

    def _prepare(self, cell: Cell) -> None:
        if cell.id in self._studies:
            return
        study = build_study(cell.config, self._first)
        self._first = self._first or study
        self._studies[cell.id] = study

    def _attack(self, pieces: list[Piece]) -> tuple[list[LeakResult], Timing]:
        """Attacks the victims of several pieces in one call."""
        if not pieces:
            return [], Timing(0.0, 0.0, 0)
        studies = [self._studies[piece.cell.id] for piece in pieces]
        inputs = _joined(
            [
                _some(study.attacks[0].inputs, piece)
                for study, piece in zip(studies, pieces, strict=True)
            ]
        )
        (first,) = self._first.attacks
        with jax.default_matmul_precision(self._first.config.precision):
            fitted = Timing(0.0, 0.0, 0)
            if self._layout is None:
                self._layout, fitted = self._lay_out(first, inputs)
            draws = first.client.draws
            run = map_victims(first.attack_one, self._layout, draws=draws, full=True)
            attacked, timing = run(*inputs)
        timing = _sum([fitted, timing])
        results, start = [], 0
        for study, piece in zip(studies, pieces, strict=True):
            victims, (attack,) = _some(study.victims, piece), study.attacks
            end = start + len(victims.labels)
            own: Attacked = jax.tree.map(lambda x, a=start, b=end: x[a:b], attacked)
            start = end
            arm = ArmResult(attack.arm, attack.setting.threat, own, timing)
            results.append(LeakResult(study.config, study.task.dataset, victims, [arm]))
        return results, timing

    def _lay_out(
        self, attack: ArmAttack, inputs: tuple[PyTree, ...]
    ) -> tuple[Layout, Timing]:
        """Reads how this group was laid out when it began, or fits it to the memory."""
        there = read_layout(self._folder, self._group.name)
        if there is not None:
            return there, Timing(0.0, 0.0, 0)
        victims = sum(cell.config.victims for cell in self._group.cells)
        most = self._most or fastest_layout("victims")
        devices = jax.local_device_count() if most.spread else 1
        chunk = max(1, min(most.chunk, -(-victims // devices)))
        budget = memory_budget() if self._memory is None else self._memory
        layout, spent = dataclasses.replace(most, chunk=chunk), []
        while True:
            taken, timing = block_memory(
                attack.attack_one, layout, inputs, draws=attack.client.draws
            )
            spent.append(timing)
            needed = devices * taken
            if needed <= budget:
                break
            if layout.chunk == 1:
                raise MemoryError(
                    f"one victim per device takes {needed / 2**20:.0f} MiB, and the "
                    f"budget is {budget / 2**20:.0f} MiB: give more memory, or "
                    "fewer restarts or examples"
                )
            smaller = int(layout.chunk * budget / needed)
            layout = dataclasses.replace(
                layout, chunk=max(1, min(layout.chunk - 1, smaller))
            )
        layout = keep_layout(self._folder, self._group.name, layout)
        return layout, _sum(spent)


class _Floors:
    """Scores studies; keeps the floors of the last: other arms attack the same ones.

    They depend on the dataset, the seed, and the examples of each victim. Datasets of
    one name need not be the same, so that each has floors of its own.
    """

    def __init__(self, most: int = 256):
        self._found: weakref.WeakKeyDictionary[Dataset, dict[Any, Floors]]
        self._found = weakref.WeakKeyDictionary()
        self._most = most

    def rows(self, result: LeakResult) -> list[Row]:
        there = self._found.setdefault(result.dataset, {})
        indices = result.victims.indices
        own = own_functions(result.config.metrics)
        same = result.config.seed, indices.shape, indices.tobytes(), own
        rows, floors = scoring.score(result, there.get(same))
        if same not in there:
            if len(there) >= self._most:
                del there[next(iter(there))]
            there[same] = floors
        return rows


def memory_budget() -> float:
    """Computes the bytes that compiled blocks may take if nobody says: half."""
    total = 0
    for device in jax.local_devices():
        stats = device.memory_stats()
        if not stats or "bytes_limit" not in stats:
            # The processor's devices share the machine's memory.
            return SHARE * machine_memory()
        total += stats["bytes_limit"]
    return SHARE * total


def _sum(timings: Iterable[Timing]) -> Timing:
    return Timing(*(sum(column) for column in zip(*timings, strict=True)))


def _images(piece: Piece, result: LeakResult) -> images.Images:
    (arm,), victims = result.arms, result.victims
    matched = scoring.matched_images(arm, result)
    first = result.dataset.positions_of(victims.indices[:, 0])
    truths = result.dataset.inputs.scored_of(victims.images)
    return images.Images(piece.first, matched, truths, first)


def _some(tree: PyTree, piece: Piece) -> PyTree:
    """Takes the victims of a piece."""
    return jax.tree.map(lambda part: part[piece.first : piece.end], tree)


def _joined(inputs: list[tuple[PyTree, ...]]) -> tuple[PyTree, ...]:
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *inputs)
