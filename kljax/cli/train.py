"""``kljax train``."""

import dataclasses
import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from kljax.cli.joining import JoinOptions
from kljax.cli.layouts import LayoutOptions
from kljax.cli.printing import printed_table, say, warnings_told
from kljax.cli.progress import TrainProgress
from kljax.core.folders import LeftOut
from kljax.parallel.processes import stay_together
from kljax.studies.config import TrainConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(LayoutOptions, JoinOptions, TrainConfig):
    """Trains a network by federated learning under several defences, side by side.

    Called again with the same configuration and folder, it goes on where it was cut
    off. Several processes share the clients; process 0 alone reads and writes the
    folder.

    Attributes:
      out: run folder to write, or to go on with; None for runs/train-DATE-TIME.
      tensorboard: whether to write for TensorBoard as well, by tensorboardX.
    """

    out: Path | None = None
    tensorboard: bool = False

    def __post_init__(self):
        """Leaves the checks to the `TrainConfig` made of it, behind the parser."""


def run_train(job: Train, console: Console) -> None:
    """Runs a training, or goes on with it, and prints its table."""
    from kljax.parallel.agreement import agreed, from_first, leads
    from kljax.studies import run_folder, training

    if not job.alone:
        stay_together(*job.meeting())
    leading = leads()
    stamp = f"{datetime.datetime.now():%Y%m%d-%H%M%S}"
    folder = job.out or Path("runs") / f"train-{stamp}"
    names = [f.name for f in dataclasses.fields(TrainConfig)]
    given = {name: getattr(job, name) for name in names}
    config = TrainConfig(**given | job.layout_of("clients"))
    summary = None
    with agreed():
        if leading:
            run_folder.check_same(folder, config)
            summary = run_folder.read_summary(folder)
    finished = from_first(summary is not None)
    if not leading:
        if not finished:
            training.train(config)
        return
    if finished:
        say(console, f"this run is finished: {folder}/")
    else:
        try:
            with (
                warnings_told(LeftOut) as told,
                TrainProgress(config, console) as progress,
            ):
                summary = training.train(
                    config,
                    folder,
                    tensorboard=job.tensorboard,
                    on_arm=progress.on_arm,
                    on_round=progress.on_round,
                ).summary
        except KeyboardInterrupt:
            say(console, f"interrupted: go on with the same options and --out {folder}")
            raise
        for words in told:
            say(console, f"warning: {words}")
    print_accuracy(summary, console)
    say(console, f"written: {folder}/ (summary.md, curves.png, metrics.csv, ...)")


def print_accuracy(summary: dict[str, Any], console: Console) -> None:
    """Prints accuracies and speed of a finished training."""
    from kljax.studies import run_folder

    header, lines = run_folder.table(summary)
    measured = run_folder.measured(summary)
    spread = "mean ± standard deviation over clients and draws"
    console.print(f"\n{measured} in %, {spread}\n")
    console.print(printed_table(header, lines))
    speed = summary["throughput"]
    console.print(
        f"\n{speed['clients_per_s']:.2f} clients/s, {speed['examples_per_s']:.0f} "
        f"examples/s on {speed['device']}; {speed['compile_s']:.1f} s compiling, "
        f"{speed['run_s']:.1f} s running"
    )
