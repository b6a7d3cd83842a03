"""Running a sweep: what compiles together runs together, part by part.

Seeds, private keys, strengths of defences, step sizes and victims are data of one
compiled function; whatever else differs makes another group. Each chunk of a group ends
as one part of the study's folder. Chunks are computed here, or by workers on a Ray
cluster; this process alone writes the folder.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from kljax.core.checks import check_text
from kljax.core.claims import claim_folder
from kljax.parallel import Layout
from kljax.studies.row_columns import own_columns
from kljax.studies.store import images
from kljax.studies.store.failures import forget_failures, read_failures, write_failure
from kljax.studies.store.layouts import keep_layout, read_layout
from kljax.studies.store.manifest import (
    Group,
    make_folder,
    make_manifest,
    open_study,
    plan,
)
from kljax.studies.store.parts import pieces_in, rows_in, write_part
from kljax.studies.sweeps import expand, on_ray, read_sweep
from kljax.studies.sweeps.computing import Computed, Limits, Task, compute_here
from kljax.studies.sweeps.progress import Finished, Progress, Report


def sweep(
    file: str | Path,
    folder: str | Path,
    *,
    part: int | None = None,
    retry_failed: bool = False,
    layout: Layout | None = None,
    memory: float | None = None,
    ray: str | None = None,
    ray_cpus: int | None = None,
    on_chunk: Callable[[Finished], Any] = lambda finished: None,
    on_news: Callable[[str], Any] = lambda line: None,
) -> Report:
    """Runs a sweep file, or goes on with its study.

    `kljax.studies.store.read` reads what is in the folder, finished or not.

    Args:
      file: in TOML, see `kljax.studies.sweeps`.
      folder: of the study, to make, to go on with, or to extend.
      part: see `kljax.studies.store.manifest.open_study`.
      retry_failed: whether cells that failed before are tried again.
      layout, memory, on_chunk: see `run_study`; of each worker, where there are some.
      ray, ray_cpus, on_news: see `kljax.studies.sweeps.on_ray.connect`; None computes
        in this process.

    Raises:
      ValueError: for anything in the file that does not exist or does not fit, and for
        ``ray_cpus`` without ``ray``.
      FileExistsError: if the folder is of something else, or in use by another job.
      OSError: if it cannot be written; what is finished stays finished.
      ImportError, RuntimeError: without Ray, or a cluster that can be reached, where
        one is asked for.
    """
    check_text("folder", str(folder))
    if ray is None and ray_cpus is not None:
        raise ValueError(f"ray_cpus={ray_cpus} is of the workers of ray, got ray=None")
    read, folder = read_sweep(file), Path(folder)
    grid, limits = expand(read), Limits(layout, memory)
    make_manifest(folder.name, read, grid, part)  # what is wrong leaves no folder
    with contextlib.ExitStack() as held:
        compute, provenance = compute_here, {}
        if ray is not None:
            compute = held.enter_context(
                on_ray.connect(ray, grid.cells, limits, ray_cpus, on_news)
            )
            provenance = compute.provenance
        make_folder(folder)
        # Whoever is refused must not have extended the study before.
        held.enter_context(claim_folder(folder))
        manifest = open_study(folder, read, grid, part=part, provenance=provenance)
        return run_study(
            folder,
            manifest,
            retry_failed=retry_failed,
            layout=layout,
            memory=memory,
            compute=compute,
            on_chunk=on_chunk,
        )


def run_study(
    folder: Path,
    manifest: dict[str, Any],
    *,
    retry_failed: bool = False,
    layout: Layout | None = None,
    memory: float | None = None,
    compute: Callable[..., Iterator[tuple[Task, Computed]]] = compute_here,
    on_chunk: Callable[[Finished], Any] = lambda finished: None,
) -> Report:
    """Runs what is not finished of a study.

    Args:
      folder, manifest: the study, see `kljax.studies.store.manifest.open_study`.
      retry_failed: whether cells that failed before are tried again. The record of a
        failure stays until all of the cell is there.
      layout: how victims are laid over the machine, at most; None for
        `fastest_layout`. What a group was begun with stays.
      memory: bytes that a compiled block may take, all local devices together; None
        for half of what there is.
      compute: `compute_here`, or a function of the same arguments; the order of what
        it gives is no matter.
      on_chunk: called after each chunk.

    Raises:
      OSError: if the folder cannot be written, or the disk is full; what is finished
        stays finished.
    """
    axes = tuple(manifest["axes"])
    keep = manifest["sweep"]["options"].get("reconstructions", False)
    recorded = {failure["cell"] for failure in read_failures(folder)}
    failed = set() if retry_failed else set(recorded)
    groups = plan(manifest, folder)
    tasks = list(_unfinished_tasks(folder, groups, axes, failed))
    begun = dict.fromkeys(task.group.name for task in tasks)
    layouts = {n: found for n in begun if (found := read_layout(folder, n)) is not None}
    progress = Progress(task.chunk for task in tasks)
    results = compute(tasks, layouts, Limits(layout, memory), failed)
    with contextlib.closing(results):
        for task, done in results:
            group, chunk = task.group, task.chunk
            if done.layout is not None and group.name not in layouts:
                keep_layout(folder, group.name, done.layout)
                layouts[group.name] = done.layout
            if keep:
                images.write_images(folder, chunk.name, done.images)
            if done.rows:
                # What is finished stays, whatever becomes of the rest of its part.
                rows = rows_in(folder, chunk, axes) | done.rows
                own = own_columns(group.cells[0].config)  # one signature, one attack
                write_part(folder, chunk, axes, rows, own.values())
            # Not before the part: killed in between, the same chunk is run again.
            for failure in done.failed.values():
                write_failure(folder, failure)
            failed.update(done.failed)
            on_chunk(progress.add(chunk, done))
    if keep:
        images.collect(folder, groups)
    if recorded:
        forget_failures(folder, recorded - _unfinished(folder, groups, axes, recorded))
    return progress.report()


def _unfinished_tasks(
    folder: Path, groups: Iterable[Group], axes: Sequence[str], failed: set[str]
) -> Iterator[Task]:
    """Finds the chunks of which more than failed cells is missing."""
    for group in groups:
        for chunk in group.chunks:
            there = pieces_in(folder, chunk.name, axes)
            missing = tuple(p for p in chunk.pieces if p.name not in there)
            if any(piece.cell.id not in failed for piece in missing):
                yield Task(group, chunk, missing)


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
