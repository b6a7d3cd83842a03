"""The command line: ``kljax leak``, ``train``, ``demo``, ``data prepare``."""

import dataclasses
import datetime
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from kljax.config import LeakConfig, TrainConfig
from kljax.progress import LeakProgress, TrainProgress
from kljax.registry import resolve


@dataclasses.dataclass(frozen=True, kw_only=True)
class Leak(LeakConfig):
    """Attacks the gradients of real images and reports what was recovered.

    Attributes:
      from_run: folder of a run of ``kljax train`` to attack a client of, at the state
        before ``round``; None for networks that are drawn afresh.
      out: run folder to write; None for runs/DATE-TIME.
    """

    from_run: Annotated[str | None, tyro.conf.arg(name="from")] = None
    out: Path | None = None

    def __post_init__(self):
        """Leaves the checks to the `LeakConfig` made of it, behind the parser."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(TrainConfig):
    """Trains a network by federated learning under several defences, side by side.

    Called again with the same configuration and folder, it goes on where it was cut
    off.

    Attributes:
      out: run folder to write, or to go on with; None for runs/train-DATE-TIME.
      tensorboard: whether to write for TensorBoard as well, by tensorboardX.
    """

    out: Path | None = None
    tensorboard: bool = False

    def __post_init__(self):
        """Leaves the checks to the `TrainConfig` made of it, behind the parser."""


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


def run_train(job: Train, console: Console) -> None:
    """Runs a training, or goes on with it, and prints its table."""
    from kljax import journal, training

    stamp = f"{datetime.datetime.now():%Y%m%d-%H%M%S}"
    folder = job.out or Path("runs") / f"train-{stamp}"
    names = [f.name for f in dataclasses.fields(TrainConfig)]
    config = TrainConfig(**{name: getattr(job, name) for name in names})
    journal.check_same(folder, config)
    summary = journal.read_summary(folder)
    if summary is not None:
        console.print(f"this run is finished: {folder}/", highlight=False)
    else:
        try:
            with TrainProgress(config, console) as progress:
                summary = training.train(
                    config,
                    folder,
                    tensorboard=job.tensorboard,
                    on_arm=progress.on_arm,
                    on_round=progress.on_round,
                ).summary
        except KeyboardInterrupt:
            console.print(
                f"interrupted: go on with the same options and --out {folder}"
            )
            raise
    print_accuracy(summary, console)
    console.print(f"written: {folder}/ (summary.md, curves.png, metrics.csv, ...)")


def print_accuracy(summary: dict[str, Any], console: Console) -> None:
    """Prints accuracies and speed of a finished training."""
    from kljax import journal

    header, lines = journal.table(summary)
    console.print("\naccuracy in %, mean ± standard deviation over clients and draws\n")
    console.print(_table(header, lines))
    speed = summary["throughput"]
    console.print(
        f"\n{speed['clients_per_s']:.2f} clients/s, {speed['examples_per_s']:.0f} "
        f"examples/s on {speed['device']}; {speed['compile_s']:.1f} s compiling, "
        f"{speed['run_s']:.1f} s running"
    )


def run_leak(job: Leak, console: Console) -> None:
    """Runs a study, prints its table and writes its folder."""
    from kljax import captured, leakage, report, scoring

    folder = job.out or Path("runs") / f"{datetime.datetime.now():%Y%m%d-%H%M%S}"
    report.check_free(folder)
    names = [f.name for f in dataclasses.fields(LeakConfig)]
    config = LeakConfig(**{name: getattr(job, name) for name in names})
    config = captured.settle(config)
    with LeakProgress(config, console) as progress:
        result = leakage.leak(
            config, on_arm=progress.on_arm, on_block=progress.on_block
        )
        progress.say("scoring")
        rows = scoring.score_rows(result)
        progress.say("done")
    summary = report.summarise(result, rows)
    print_summary(result, summary, console)
    report.write_run(folder, result, rows, summary)
    console.print(f"written: {folder}/ (summary.md, gallery.png, rows.csv, ...)")


def print_summary(result, summary: dict[str, Any], console: Console) -> None:
    """Prints threat models, tables and speed of a finished study."""
    from kljax import report

    config = result.config
    console.print(
        f"\n{config.model} on {config.data}: {config.victims} victims, attack "
        f"{config.attack}, {config.restarts} x {config.steps} evaluations each\n"
    )
    for line in report.threat_lines(result):
        console.print(line, markup=False, highlight=False)
    for header, lines in report.brief_tables(summary):
        console.print()
        console.print(_table(header, lines))
    console.print()
    reading = report.READING.replace("*", "").replace("`", "")
    console.print(" ".join(reading.split()), highlight=False)
    console.print()
    speed = summary["throughput"]
    console.print(
        f"{speed['evaluations_per_s']:.0f} evaluations/s, "
        f"{speed['attacks_per_hour']:.0f} attacks/h on {speed['device']}; "
        f"{speed['compile_s']:.1f} s compiling, {speed['run_s']:.1f} s running"
    )


def _table(header: list[str], lines: list[list[str]]) -> Table:
    printed = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False, pad_edge=False)
    for name in header:
        first = name == header[0]
        # Only names may be folded, on a narrow terminal.
        printed.add_column(
            name,
            justify="left" if first else "right",
            no_wrap=not first,
            overflow="fold" if first else "ellipsis",
        )
    for line in lines:
        printed.add_row(*line)
    return printed


def run_demo(job: Demo, console: Console) -> None:
    """Runs the preset study of the README."""
    stamp = f"{datetime.datetime.now():%Y%m%d-%H%M%S}"
    out = job.out or Path("runs") / f"demo-{stamp}"
    run_leak(Leak(data=job.data, steps=1000, out=out), console)


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

    Bad input ends in one line on standard error and status 2, a training that turned
    NaN in status 1.
    """
    _use_all_cores()
    # A study's own model or data may live beside the user, as with python -m.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    commands = {"leak": Leak, "train": Train, "demo": Demo, "data": Data}
    job = tyro.extras.subcommand_cli_from_dict(
        commands, prog="kljax", description=__doc__, args=arguments
    )
    runs = {Leak: run_leak, Train: run_train, Demo: run_demo, Data: run_data}
    try:
        runs[type(job)](job, Console())
    except OSError as error:
        return _refused(error)
    except (ValueError, NotImplementedError, TypeError, ImportError) as error:
        # What kljax itself refuses is bad input. Whatever breaks elsewhere, in a
        # user's own network say, is a bug, and its traceback says where.
        if not _raised_here(error):
            raise
        return _refused(error)
    except FloatingPointError as error:  # a training that turned NaN
        if not _raised_here(error):
            raise
        return _refused(error, status=1)
    except KeyboardInterrupt:
        return 130
    return 0


def _refused(error: Exception, status: int = 2) -> int:
    line = " ".join(part.strip() for part in str(error).splitlines())
    print(f"kljax: {line}", file=sys.stderr)
    return status


def _raised_here(error: Exception) -> bool:
    frame = list(traceback.walk_tb(error.__traceback__))[-1][0]
    return frame.f_globals.get("__name__", "").partition(".")[0] == "kljax"
