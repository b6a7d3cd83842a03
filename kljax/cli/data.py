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


def run_data(job: Data, console: Console) -> None:
    """Prepares a dataset."""
    from kljax.data import PREPARERS

    prepare = resolve("dataset to prepare", job.name, PREPARERS)
    say(console, f"written: {prepare(job.source, job.data_dir)}")
