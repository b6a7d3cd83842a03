"""The command line: ``kljax leak``, ``kljax demo``, ``kljax data prepare``."""

import dataclasses
import datetime
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from kljax.leakage import LeakConfig
from kljax.registry import resolve


@dataclasses.dataclass(frozen=True, kw_only=True)
class Leak(LeakConfig):
    """Attacks the gradients of real images and reports what was recovered.

    Attributes:
      out: run folder to write; None for runs/DATE-TIME.
    """

    out: Path | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Demo:
    """Runs the main job on embedded images: six arms, sixteen victims.

    Attributes:
      out: run folder to write; None for runs/demo-DATE-TIME.
      data: digits or photos.
    """

    out: Path | None = None
    data: str = "digits"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """Writes a TFDS dataset from files on disk, without TensorFlow.

    Attributes:
      action: prepare.
      name: dataset to write (fashion_mnist).
      source: folder that holds its files.
      data_dir: where to write it; None for TFDS's own default.
    """

    action: Annotated[Literal["prepare"], tyro.conf.Positional]
    name: Annotated[str, tyro.conf.Positional]
    source: Annotated[Path, tyro.conf.arg(name="from")]
    data_dir: Path | None = None


class _Speed(ProgressColumn):
    def render(self, task):
        speed = task.finished_speed or task.speed
        return Text("- attacks/s" if speed is None else f"{speed:.2f} attacks/s")


def run_leak(job: Leak, console: Console) -> None:
    """Runs a study, prints its table and writes its folder."""
    from kljax import leakage, report, scoring

    folder = job.out or Path("runs") / f"{datetime.datetime.now():%Y%m%d-%H%M%S}"
    report.check_free(folder)
    names = [f.name for f in dataclasses.fields(LeakConfig)]
    config = LeakConfig(**{name: getattr(job, name) for name in names})
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Speed(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("starting", total=config.victims * len(config.arms))
        finished = -config.victims

        def on_arm(name: str) -> None:
            nonlocal finished
            finished += config.victims
            progress.update(task, description=name)

        def on_block(done: int) -> None:
            progress.update(task, completed=finished + done)

        result = leakage.leak(config, on_arm=on_arm, on_block=on_block)
        progress.update(task, description="scoring")
        rows = scoring.score_rows(result)
        progress.update(task, description="done")
    summary = report.summarise(result, rows)
    report.write_run(folder, result, rows, summary)
    for arm in result.arms:
        console.print(f"[bold]{arm.arm.name}[/bold]", str(arm.threat), highlight=False)
    header, lines = report.table(summary)
    printed = Table(*header, title=f"{config.model} on {config.data}")
    for line in lines:
        printed.add_row(*line)
    console.print(printed)
    speed = summary["throughput"]
    console.print(
        f"{speed['evaluations_per_s']:.0f} evaluations/s, "
        f"{speed['attacks_per_hour']:.0f} attacks/h on {speed['device']}; "
        f"{speed['compile_s']:.1f} s compiling, {speed['run_s']:.1f} s running"
    )
    console.print(f"written: {folder}/ (summary.md, gallery.png, rows.csv, ...)")


def run_demo(job: Demo, console: Console) -> None:
    """Runs the preset study of the README."""
    stamp = f"{datetime.datetime.now():%Y%m%d-%H%M%S}"
    out = job.out or Path("runs") / f"demo-{stamp}"
    run_leak(Leak(data=job.data, steps=1500, out=out), console)


def run_data(job: Data, console: Console) -> None:
    """Prepares a dataset."""
    from kljax.data import PREPARERS

    prepare = resolve("dataset to prepare", job.name, PREPARERS)
    console.print(f"written: {prepare(job.source, job.data_dir)}")


def _use_all_cores() -> None:
    """Gives JAX one host device per core, so that victims are spread over them.

    On two cores two devices ran 1.3 to 2 times as many evaluations as one
    (experiments/speed.md). Left alone where the user has chosen already.
    """
    import jax

    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", os.cpu_count() or 1)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status.

    Bad input ends in one line on standard error and status 2.
    """
    _use_all_cores()
    # A study's own model or data may live beside the user, as with python -m.
    sys.path.insert(0, os.getcwd())
    commands = {"leak": Leak, "demo": Demo, "data": Data}
    job = tyro.extras.subcommand_cli_from_dict(
        commands, prog="kljax", description=__doc__, args=arguments
    )
    runs = {Leak: run_leak, Demo: run_demo, Data: run_data}
    try:
        runs[type(job)](job, Console())
    except (ValueError, FileExistsError, FileNotFoundError) as error:
        Console(stderr=True).print(f"kljax: {error}", markup=False, highlight=False)
        return 2
    return 0
