"""``kljax sweep``, ``report`` and ``merge``."""

import dataclasses
import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro
from rich.console import Console

from kljax.cli.layouts import LayoutOptions, check_device
from kljax.cli.printing import printed_table, say, warnings_told
from kljax.cli.progress import SweepProgress
from kljax.core.checks import check_number, check_whole
from kljax.core.folders import LeftOut


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep(LayoutOptions):
    """Runs a grid of studies from a file, or goes on with one that was cut off.

    One process has all devices of its machine. On many machines, ``--ray``.

    Attributes:
      file: sweep file, in TOML; see experiments/presets.
      out: study folder to write, or to go on with; None for runs/NAME of the file.
      dry_run: whether to say what it would take, and run nothing but a short probe.
      device: JSON file of a device that the cost model of ``dry_run`` is to predict
        for; None for this one, which is calibrated once and kept in the user's cache.
      probe: seconds that the probe may take; it never stops before its first group.
      part: victims in one part of the study, which is what a kill may cost; None for
        what the study has, or 64.
      memory: GiB that a compiled block may take; None for half of what there is.
      ray: lets a Ray cluster compute, a worker per GPU or, without any, per so many
        cores: HOST:PORT of its head, local to start one here, nothing for the cluster
        of this machine. This process alone writes the folder.
      ray_cpus: cores of each of Ray's workers; None for all of its machine.
      retry_failed: whether cells that failed before are tried again.
      report: whether the report is written at the end.
    """

    file: Annotated[Path, tyro.conf.Positional]
    out: Path | None = None
    dry_run: bool = False
    device: Path | None = None
    probe: float = 60.0
    part: int | None = None
    memory: float | None = None
    ray: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar="[ADDRESS]")] = None
    ray_cpus: int | None = None
    retry_failed: bool = False
    report: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """Writes tables, plots and a page about a study, finished or not.

    Attributes:
      study: folder of kljax sweep, or of kljax leak.
      out: folder to write; None for report/ in the study.
      rows: axes that make the rows of the table; none for the arms.
      columns: axes that make its columns; none for the axis with most points.
      value: what is in it: ssim, success, psnr, or whatever else has a mean, see
        ``kljax columns``; none for ssim of images, token_accuracy of text, and success
        of a study of both.
      runs: folders of kljax train on the very networks attacked, for privacy against
        accuracy.
      against: folder of another study, whose cells that are alike are compared, victim
        by victim.
      gif: whether pages of victims have moving pictures, of a study with snapshots.
    """

    study: Annotated[Path, tyro.conf.Positional]
    out: Path | None = None
    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    value: str | None = None
    runs: tuple[Path, ...] = ()
    against: Path | None = None
    gif: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Merge:
    """Joins two studies of the same axes into a new one.

    Attributes:
      first, second: folders of kljax sweep.
      out: folder to write.
    """

    first: Annotated[Path, tyro.conf.Positional]
    second: Annotated[Path, tyro.conf.Positional]
    out: Path


def run_sweep(job: Sweep, console: Console) -> None:
    """Runs a sweep and writes the report."""
    from kljax.parallel import compilation
    from kljax.studies.store.failures import read_failures
    from kljax.studies.sweeps import running

    check_device(job.device, job.dry_run)
    check_number(job, "probe")
    if job.memory is not None:
        check_number(job, "memory", positive=True)
    if job.part is not None:
        check_whole(job, {"part": 1})
    if job.ray_cpus is not None:
        check_whole(job, {"ray_cpus": 1})
    place = _place_of(job)
    folder = job.out or Path("runs") / job.file.stem
    compilation.use_cache()
    if job.dry_run:
        say_what_it_takes(job, folder.name, console)
        return
    try:
        with warnings_told(LeftOut) as told, SweepProgress(console) as progress:
            done = running.sweep(
                job.file,
                folder,
                part=job.part,
                retry_failed=job.retry_failed,
                memory=None if job.memory is None else job.memory * 2**30,
                **place,
                on_chunk=progress.on_chunk,
                on_news=progress.say,
            )
    except KeyboardInterrupt:
        say(console, f"interrupted: go on with the same file and --out {folder}")
        raise
    console.print(
        f"{done.attacks} attacks, {done.compilations} compilations: "
        f"{done.compile_s:.1f} s compiling, {done.run_s:.1f} s attacking",
        highlight=False,
    )
    for words in told:
        say(console, f"warning: {words}")
    for failure in read_failures(folder):
        say(console, f"failed: {failure['error']}\n  again: {failure['command']}")
    if job.report:
        run_report(Report(study=folder), console)


def _place_of(job: Sweep) -> dict[str, Any]:
    """Says where a sweep is computed, and how it is laid out there."""
    if job.ray is None:
        if job.ray_cpus is not None:
            raise ValueError("--ray-cpus is of the workers of --ray, which is missing")
        return job.layout_of("victims")
    if job.dry_run:
        raise ValueError(
            "--ray and --dry-run exclude each other: the probe runs on this machine"
        )
    if len(job.ray) > 1:
        raise ValueError(f"--ray takes one address, got {' '.join(job.ray)}")
    if (job.layout_kind is None) != (job.layout_chunk is None):
        raise ValueError(
            "layout.kind and layout.chunk go together with --ray: what is fastest is "
            "known to the workers alone"
        )
    # A GPU of this machine is a worker's.
    jax.config.update("jax_platforms", "cpu")
    layout = {} if job.layout_kind is None else job.layout_of("victims")
    return layout | {"ray": (*job.ray, "auto")[0], "ray_cpus": job.ray_cpus}


def refuse_dealing(arguments: Sequence[str]) -> None:
    """Says what became of the options by which processes shared a sweep.

    Raises:
      ValueError: for one of them.
    """
    old = ("--coordinator", "--processes", "--process")
    for name in (word.partition("=")[0] for word in arguments):
        if arguments[0] == "sweep" and name in old:
            raise ValueError(
                f"{name} is no option of kljax sweep any more: --ray shares a sweep "
                "among machines (kljax sweep --help); in kljax train it stays"
            )


def say_what_it_takes(job: Sweep, name: str, console: Console) -> None:
    """Prints cells, compilations, victims, time and memory of a sweep."""
    from kljax.studies.devices import CALIBRATING, basis, this_device
    from kljax.studies.store.manifest import cells_of, make_manifest
    from kljax.studies.sweeps import expand, read_sweep
    from kljax.studies.sweeps.estimate import estimate_sweep, predict_sweep

    sweep = read_sweep(job.file)
    manifest = make_manifest(name, sweep, expand(sweep), job.part)
    cells, axes = cells_of(manifest), tuple(manifest["axes"])
    victims = sum(cell.config.victims for cell in cells)
    lines = [
        [cell.id, *(cell.point[axis] for axis in axes), str(cell.config.victims)]
        for cell in cells
    ]
    console.print(printed_table(["cell", *axes, "victims"], lines))
    console.print(
        f"\n{len(cells)} cells ({manifest['excluded']} excluded, "
        f"{manifest['illegal']} illegal pairs of knowledge and strategy left out), "
        f"{victims} victims",
        highlight=False,
    )
    found = estimate_sweep(manifest, **job.layout_of("victims"), seconds=job.probe)
    groups, probed = found.groups
    compiling = datetime.timedelta(seconds=round(found.compile_s))
    running = datetime.timedelta(seconds=round(found.run_s))
    console.print(
        f"{found.compilations} compilations in {groups} groups; from a probe of "
        f"{probed} of them: {compiling} compiling without a warm cache, {running} "
        f"attacking, {found.memory / 2**20:.0f} MiB for the largest block",
        highlight=False,
    )
    layout = job.layout_of("victims")["layout"]
    device = this_device(job.device, lambda: say(console, CALIBRATING))
    each, whole = predict_sweep(manifest, layout, device)
    say(console, basis(each, whole, victims, device), wrap=True)


def run_report(job: Report, console: Console) -> None:
    """Writes the report of a study."""
    from kljax.studies import reports, store

    page = reports.write_report(
        store.read(job.study),
        job.out or job.study / "report",
        rows=job.rows or None,
        columns=job.columns or None,
        value=job.value,
        runs=job.runs,
        against=None if job.against is None else store.read(job.against),
        gif=job.gif,
    )
    say(console, f"written: {page}")


def run_merge(job: Merge, console: Console) -> None:
    """Joins two studies."""
    from kljax.studies.store.merging import merge_studies

    merge_studies(job.first, job.second, job.out)
    say(console, f"written: {job.out}/")
