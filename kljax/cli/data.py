"""``kljax data prepare``."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from kljax.cli.printing import say
from kljax.core.registry import resolve


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """Prepares a dataset from files on disk, without TensorFlow.

    Attributes:
      action: prepare.
      name: dataset to write: fashion_mnist, or mnist5k (5,000 digits).
      source: folder that holds its files; None to download mnist5k.
      data_dir: where to write it; None for where it is looked for.
    """

    action: Annotated[Literal["prepare"], tyro.conf.Positional]
    name: Annotated[str, tyro.conf.Positional]
    source: Annotated[Path | None, tyro.conf.arg(name="from")] = None
    data_dir: Path | None = None


def run_data(job: Data, console: Console) -> None:
    """Prepares a dataset.

    Raises:
      ValueError: for an unknown one, and one whose files have to be given.
    """
    from kljax.data.prepare import DOWNLOADED, PREPARERS

    prepare = resolve("dataset to prepare", job.name, PREPARERS)
    if job.source is None and job.name not in DOWNLOADED:
        raise ValueError(f"dataset {job.name!r} is not downloaded: give --from FOLDER")
    say(console, f"written: {prepare(job.source, job.data_dir)}")
