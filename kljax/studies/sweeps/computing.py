"""Computing chunks: one compiled function for a group, and the rows that come of it.

Nothing is written here: what is computed may be of another machine than the folder.
"""

import dataclasses
import weakref
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from kljax.core.memory import machine_memory
from kljax.core.registry import own_functions
from kljax.core.types import PyTree
from kljax.data import Dataset
from kljax.parallel import Layout, Timing, block_memory, fastest_layout, map_victims
from kljax.studies import scoring
from kljax.studies.builder.one_victim import Attacked
from kljax.studies.builder.study import ArmAttack, Study, build_study
from kljax.studies.input_scores import FloorsOfInputs
from kljax.studies.leakage import ArmResult, LeakResult
from kljax.studies.scoring import Row
from kljax.studies.store import images
from kljax.studies.store.failures import Failure, make_failure
from kljax.studies.store.manifest import Chunk, Group, Piece
from kljax.studies.sweeps import Cell

SHARE = 0.5  # of the memory that there is, if no budget is given


class Task(NamedTuple):
    """What is missing of a chunk."""

    group: Group
    chunk: Chunk
    missing: tuple[Piece, ...]


class Limits(NamedTuple):
    """What one worker may take.

    Attributes:
      layout: how victims are laid over its devices, at most; None for
        `fastest_layout`.
      memory: bytes that a compiled block may take, all its devices together; None for
        half of what there is.
      share: of its machine's memory, where no budget is given.
    """

    layout: Layout | None = None
    memory: float | None = None
    share: float = 1.0


class Computed(NamedTuple):
    """A chunk's results, before they are written.

    Attributes:
      rows: by name of the piece.
      images: by id of the cell.
      timing: of this chunk.
      failed: by id of the cell.
      layout: with which it was computed; None if nothing was.
      workers: how many there are, where there are workers.
    """

    rows: dict[str, list[Row]]
    images: dict[str, images.Images]
    timing: Timing
    failed: dict[str, Failure]
    layout: Layout | None = None
    workers: int | None = None


NO_TIME = Timing(0.0, 0.0, 0)


def compute_here(
    tasks: Iterable[Task],
    layouts: Mapping[str, Layout],
    limits: Limits,
    failed: Collection[str],
) -> Iterator[tuple[Task, Computed]]:
    """Computes chunks in this process, one after another.

    Args:
      tasks: of one group after another.
      layouts: name of a group -> what it was begun with.
      limits: of this process.
      failed: ids of cells that are not tried; it may grow meanwhile.
    """
    name, runner, floors = None, None, FloorsKept()
    for task in tasks:
        if task.group.name != name:
            name = task.group.name
            runner = GroupRunner(
                count_victims(task.group), layouts.get(name), limits, floors
            )
        yield task, runner.run(task.missing, failed)


def count_victims(group: Group) -> int:
    """Counts the victims of a group."""
    return sum(cell.config.victims for cell in group.cells)


class GroupRunner:
    """Runs the chunks of one group with one compiled function.

    Attributes:
      layout: of all its chunks; None before the first, unless it was given.
    """

    def __init__(
        self,
        victims: int,
        layout: Layout | None,
        limits: Limits,
        floors: "FloorsKept",
    ):
        """Takes the number of victims in the group, and how it was laid out before."""
        self._victims, self.layout = victims, layout
        self._limits, self._floors = limits, floors
        self._first: Study | None = None  # whose functions all cells share
        self._studies: dict[str, Study] = {}
        self._learned: dict[str, PyTree] = {}  # of cells whose attack learns

    def run(self, pieces: tuple[Piece, ...], failed: Collection[str]) -> Computed:
        """Runs some victims; a cell that raises does not stop the others."""
        failed, new = set(failed), {}
        sound: list[Piece] = []
        here = {piece.cell.id for piece in pieces}
        self._studies = {c: p for c, p in self._studies.items() if c in here}
        self._learned = {c: p for c, p in self._learned.items() if c in here}
        for piece in pieces:
            if piece.cell.id in failed or piece.cell.id in new:
                continue
            try:
                self._prepare(piece.cell)
            except Exception as error:
                new[piece.cell.id] = make_failure(piece.cell, error)
            else:
                sound.append(piece)
        try:
            attacked, timing = self._attack(sound)
        except Exception as error:
            if len(sound) > 1:
                # One of them is to blame: alone, the others get through.
                return self._run_apart(sound, failed, new)
            new |= {p.cell.id: make_failure(p.cell, error) for p in sound}
            sound, attacked, timing = [], [], NO_TIME
        rows, images_of_cells = {}, {}
        for piece, result in zip(sound, attacked, strict=True):
            # What is attacked need not be attacked again because another has no score.
            try:
                rows[piece.name] = self._floors.rows(result)
                images_of_cells[piece.cell.id] = images.collect_images(
                    *result.arms, result, piece.first
                )
            except Exception as error:
                rows.pop(piece.name, None)
                new[piece.cell.id] = make_failure(piece.cell, error)
        return Computed(rows, images_of_cells, timing, new, self.layout)

    def _run_apart(
        self, pieces: list[Piece], failed: set[str], new: dict[str, Failure]
    ) -> Computed:
        parts = [self.run((piece,), failed | {*new}) for piece in pieces]
        return Computed(
            {name: rows for part in parts for name, rows in part.rows.items()},
            {cell: some for part in parts for cell, some in part.images.items()},
            _sum(part.timing for part in parts),
            new | {cell: why for part in parts for cell, why in part.failed.items()},
            self.layout,
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
            return [], NO_TIME
        (first,) = self._first.attacks
        if first.learn is not None and len(pieces) > 1:
            # What is learned is the same for the victims of one cell alone.
            parts = [self._attack([piece]) for piece in pieces]
            results = [result for some, _ in parts for result in some]
            return results, _sum(timing for _, timing in parts)
        studies = [self._studies[piece.cell.id] for piece in pieces]
        inputs = _joined(
            [
                _some(study.attacks[0].inputs, piece)
                for study, piece in zip(studies, pieces, strict=True)
            ]
        )
        learned, spent = self._learn(pieces[0].cell) if first.learn else (None, NO_TIME)
        with jax.default_matmul_precision(self._first.config.precision):
            fitted = NO_TIME
            if self.layout is None:
                self.layout, fitted = self._lay_out(first, inputs, learned)
            run = map_victims(
                first.attack_one,
                self.layout,
                draws=first.client.draws,
                full=True,
                shared=learned,
            )
            attacked, timing = run(*inputs)
        timing = _sum([spent, fitted, timing])
        results, start = [], 0
        for study, piece in zip(studies, pieces, strict=True):
            victims, (attack,) = _some(study.victims, piece), study.attacks
            end = start + len(victims.labels)
            own: Attacked = jax.tree.map(lambda x, a=start, b=end: x[a:b], attacked)
            start = end
            arm = ArmResult(attack.arm, attack.setting.threat, own, timing)
            results.append(LeakResult(study.config, study.task.dataset, victims, [arm]))
        return results, timing

    def _learn(self, cell: Cell) -> tuple[PyTree, Timing]:
        """Learns what the attack of a cell needs, once while its chunks follow."""
        if cell.id in self._learned:
            return self._learned[cell.id], NO_TIME
        (attack,) = self._studies[cell.id].attacks
        self._learned[cell.id], timing = attack.learn()
        return self._learned[cell.id], timing

    def _lay_out(
        self, attack: ArmAttack, inputs: tuple[PyTree, ...], learned: PyTree
    ) -> tuple[Layout, Timing]:
        """Fits the layout of a group that has not begun to the memory."""
        most = self._limits.layout or fastest_layout("victims")
        devices = jax.local_device_count() if most.spread else 1
        chunk = max(1, min(most.chunk, -(-self._victims // devices)))
        budget = self._limits.memory
        if budget is None:
            budget = self._limits.share * memory_budget()
        layout, spent = dataclasses.replace(most, chunk=chunk), []
        while True:
            taken, timing = block_memory(
                attack.attack_one,
                layout,
                inputs,
                draws=attack.client.draws,
                shared=learned,
            )
            spent.append(timing)
            needed = devices * taken
            if needed <= budget:
                return layout, _sum(spent)
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


class FloorsKept:
    """Scores studies; keeps the floors of the last: other arms attack the same ones.

    They depend on the dataset, the seed, and the examples of each victim. Datasets of
    one name need not be the same, so that each has floors of its own.
    """

    def __init__(self, most: int = 256):
        self._floors: weakref.WeakKeyDictionary[Dataset, dict[Any, FloorsOfInputs]]
        self._floors = weakref.WeakKeyDictionary()
        self._most = most

    def rows(self, result: LeakResult) -> list[Row]:
        there = self._floors.setdefault(result.dataset, {})
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


def _some(tree: PyTree, piece: Piece) -> PyTree:
    """Takes the victims of a piece."""
    return jax.tree.map(lambda part: part[piece.first : piece.end], tree)


def _joined(inputs: list[tuple[PyTree, ...]]) -> tuple[PyTree, ...]:
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *inputs)
