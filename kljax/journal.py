"""The run folder of a training: what is written while it runs, and what is read again.

``config.json`` comes first and says which run it is. ``metrics.csv`` has one row per
arm and round; ``summary.json``, ``summary.md`` and ``curves.png`` come last. Each file
is written aside and renamed, so that a run killed at any moment leaves whole files.
"""

import csv
import dataclasses
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

from tabulate import tabulate

from kljax import evaluation, figures
from kljax.arms import ON_UPDATE, acts_on_release
from kljax.config import SPEED_OPTIONS, TrainConfig
from kljax.files import (
    DamagedFile,
    converted,
    read_json,
    read_text,
    write_json,
    write_text,
)
from kljax.provenance import device, provenance
from kljax.registry import unknown_name
from kljax.run_folder import optional

# Up to 1, what is now written NAME@update was written NAME.
SCHEMA_VERSION = 2
JOB = "train"

Row = dict[str, Any]


class Accuracy(TypedDict):
    """What one test of one arm says, as `kljax.evaluation.evaluate` writes it."""

    mean: float
    std: float | None
    values: list[float]


class Throughput(TypedDict):
    """What a run took."""

    clients_per_s: float
    examples_per_s: float
    compile_s: float
    run_s: float
    device: str


class Summary(TypedDict):
    """What ``summary.json`` holds."""

    accuracy: dict[str, dict[str, Accuracy]]  # by arm and test
    throughput: Throughput
    config: dict[str, Any]


# What config.json says besides options.
DESCRIBED = {
    *("schema_version", "job", "data_licence"),
    *("device", "local_devices", "python", "versions"),
}
RESTORE = "restore it from a copy, or name another folder"
REMAKE = "remove it and run the training again: it is made anew from the checkpoints"
LOST = (
    "restore it from a copy; without the file the training goes on from its checkpoint "
    "and lacks the rows of earlier rounds"
)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split())


# column of metrics.csv -> how it is read; empty is None
COLUMNS = {
    "schema_version": int,
    "arm": str,
    "round": int,  # the round run, from 0
    "loss": float,  # mean over local steps and clients, weighted as they are
    "train_accuracy": float,  # in the step that used the example
    "test_accuracy": float,  # after the round; own private key, own lock
    "clients": int,  # in the cohort
    "examples": int,  # gone through by the cohort
    "excluded": _numbers,  # clients left out as not finite
    "compile_s": float,
    "run_s": float,
}
MAY_BE_EMPTY = ("loss", "train_accuracy", "test_accuracy")


# --- which run it is --------------------------------------------------------------


def check_same(folder: Path, config: TrainConfig) -> None:
    """Refuses a folder that belongs to something else; a new one is fine.

    Raises:
      FileExistsError: if `folder` is there and is no run of `kljax train`, or one of
        another configuration; the differences are named. Options of speed may differ.
      DamagedFile: if its ``config.json`` is not what was written.
      ValueError: for a run whose arms mean something else today.
    """
    # Killed before its first file was whole, a run has left nothing but hidden files.
    if not folder.exists() or (
        folder.is_dir() and all(p.name[0] == "." for p in folder.iterdir())
    ):
        return
    there = _read_config(folder)
    if there is None:
        raise FileExistsError(
            f"run folder {str(folder)!r} exists and is no run of kljax train: name "
            "another"
        )
    # Through JSON and back, where tuples are lists.
    here = json.loads(json.dumps(dataclasses.asdict(config)))
    # What a run could not say yet was as it is by default.
    there = json.loads(json.dumps(dataclasses.asdict(TrainConfig()))) | there
    different = [
        f"{name}: {_shown(there, name)} there, {_shown(here, name)} here"
        for name in here
        if name not in SPEED_OPTIONS and _shown(there, name) != _shown(here, name)
    ]
    if different:
        raise FileExistsError(
            f"run folder {str(folder)!r} is of another configuration ("
            f"{'; '.join(different)}): name another, or repeat its own"
        )
    _check_meaning(folder, there)


def read_config(folder: Path, *, newer_ok: bool = False) -> TrainConfig:
    """Reads the configuration of a run.

    Args:
      folder: of the run.
      newer_ok: whether options that this kljax does not have are passed over.

    Raises:
      FileNotFoundError: if there is no ``config.json``.
      DamagedFile: if it is not what was written.
      ValueError: if it is not of a run of `kljax train`, has an option that this kljax
        does not have, or arms that mean something else today.
    """
    path = folder / "config.json"
    if not path.exists():
        raise FileNotFoundError(
            f"{str(folder)!r} is no run of kljax train: it has no config.json"
        )
    found = _read_config(folder)
    if found is None:
        raise ValueError(f"{str(folder)!r} is no run of kljax train")
    options = {field.name: field for field in dataclasses.fields(TrainConfig)}
    for name in () if newer_ok else found.keys() - options.keys() - DESCRIBED:
        raise ValueError(f"{path}: {unknown_name('option', name, options)}")
    config = converted(found, TrainConfig, path, remedy=RESTORE)
    _check_meaning(folder, found)
    return config


def _read_config(folder: Path) -> dict[str, Any] | None:
    """Reads ``config.json``; None if the folder is no run of `kljax train`."""
    try:
        found = read_json(folder / "config.json", dict[str, Any], remedy=RESTORE)
    except NotADirectoryError:
        return None
    return None if found is None or found.get("job") != JOB else found


def read_summary(folder: Path) -> dict[str, Any] | None:
    """Reads the summary of a finished run; None if it is not finished.

    Raises:
      DamagedFile: if it is not what was written.
    """
    return read_json(folder / "summary.json", Summary, remedy=REMAKE)


def read_accuracy(folder: Path) -> dict[str, Accuracy] | None:
    """Reads what the tests of an arm said; None if they have not been made.

    Raises:
      DamagedFile: if it is not what was written.
    """
    path = folder / "accuracy.json"
    return read_json(path, dict[str, Accuracy], remedy=REMAKE)


def describe(config: TrainConfig, licence: str) -> dict[str, Any]:
    """Says all that is needed to repeat a run, as written to ``config.json``."""
    return {
        "schema_version": SCHEMA_VERSION,
        "job": JOB,
        **dataclasses.asdict(config),
        "data_licence": licence,
        **provenance(),
    }


def _check_meaning(folder: Path, config: dict[str, Any]) -> None:
    """Refuses a run in which transforms acted on updates without saying so."""
    if config.get("schema_version", 1) != 1:
        return
    changed = [arm for arm in config.get("arms", ()) if acts_on_release(arm)]
    if changed:
        raise ValueError(
            f"run {str(folder)!r} is of an older kljax, in which noise, clipping and "
            f"pruning of {', '.join(changed)} acted once on the whole update; now they "
            f"act on the gradient of each step, unless {ON_UPDATE} follows their name: "
            "train it again in another folder, under the names of what you mean"
        )


def _shown(config: dict[str, Any], name: str) -> str:
    return json.dumps(config[name]) if name in config else "nothing"


# --- metrics ----------------------------------------------------------------------


def read_rows(folder: Path) -> list[Row]:
    """Reads ``metrics.csv``; no rows if it is not there.

    Raises:
      DamagedFile: for other columns than `COLUMNS`, and for a line that does not hold
        what they hold.
    """
    path = folder / "metrics.csv"
    if not path.exists():
        return []
    lines = csv.reader(io.StringIO(read_text(path, remedy=LOST), newline=""))
    try:
        header = next(lines, [])
        _check_header(path, header)
        return [_read_row(path, n, header, line) for n, line in enumerate(lines, 2)]
    except csv.Error as error:
        place = f"line {lines.line_num}"
        raise DamagedFile(path, str(error), remedy=LOST, place=place) from None


def check_rows(folder: Path, rows: list[Row], arm: str, rounds: int) -> None:
    """Checks that the rows of an arm are those of its first rounds.

    Raises:
      DamagedFile: if not: ``metrics.csv`` is written before a checkpoint.
    """
    path = folder / "metrics.csv"
    found = [row["round"] for row in rows if row["arm"] == arm]
    if path.exists() and found[:rounds] != list(range(rounds)):
        what = f"arm {arm!r} lacks rows of the {rounds} rounds before its checkpoint"
        raise DamagedFile(path, what, remedy=LOST)


def _check_header(path: Path, header: list[str]) -> None:
    for name in header:
        if name not in COLUMNS:
            what = unknown_name("column", name, COLUMNS)
            raise DamagedFile(path, what, remedy=LOST, place="line 1")
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        what = f"it lacks {', '.join(missing)}"
        raise DamagedFile(path, what, remedy=LOST, place="line 1")


def _read_row(path: Path, number: int, header: list[str], line: list[str]) -> Row:
    place = f"line {number}"
    if len(line) != len(header):
        what = f"it has {len(line)} of {len(header)} fields"
        raise DamagedFile(path, what, remedy=LOST, place=place)
    row = {}
    for name, text in zip(header, line, strict=True):
        if not text and name in MAY_BE_EMPTY:
            row[name] = None
            continue
        try:
            row[name] = COLUMNS[name](text)
        except ValueError:
            what = f"{name} is {text!r}"
            raise DamagedFile(path, what, remedy=LOST, place=place) from None
    return row


def write_rows(folder: Path, rows: list[Row]) -> None:
    """Writes ``metrics.csv``."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    for row in rows:
        writer.writerow(row | {"excluded": " ".join(map(str, row["excluded"]))})
    write_text(folder / "metrics.csv", text.getvalue())


# --- TensorBoard -----------------------------------------------------------------


def boards(folder: Path | None) -> Callable[[str, int], Any]:
    """Makes the function that opens an arm's writer, ``(name, first round) -> writer``.

    Raises:
      ValueError: without a folder.
      ImportError: if tensorboardX is not installed.
    """
    if folder is None:
        raise ValueError("tensorboard needs a run folder to write to")
    try:
        import tensorboardX
    except ImportError as error:
        raise ImportError(
            "tensorboard needs tensorboardX, which is not installed: pip install "
            "'kljax[tensorboard]'"
        ) from error

    def board(name: str, first: int):
        # What a killed process wrote after the checkpoint is hidden.
        place = str(folder / "tensorboard" / name)
        return tensorboardX.SummaryWriter(place, purge_step=first)

    return board


def write_board(board: Any, row: Row) -> None:
    """Writes a round to TensorBoard."""
    for name in ("loss", "train_accuracy", "test_accuracy"):
        if row[name] is not None:
            board.add_scalar(name, row[name], row["round"])
    board.flush()


# --- the end ----------------------------------------------------------------------


def summarise(
    config: dict[str, Any], rows: list[Row], accuracy: dict[str, Any]
) -> dict[str, Any]:
    """Summarises a finished run, as written to ``summary.json``.

    Args:
      config: what `describe` says.
      rows: of all arms.
      accuracy: by arm, what `kljax.evaluation.evaluate` says.
    """
    run_s = sum(row["run_s"] for row in rows)
    return {
        "schema_version": SCHEMA_VERSION,
        "accuracy": accuracy,
        "throughput": {
            "clients_per_s": sum(row["clients"] for row in rows) / run_s,
            "examples_per_s": sum(row["examples"] for row in rows) / run_s,
            "compile_s": sum(row["compile_s"] for row in rows),
            "run_s": run_s,
            "device": device(),
        },
        "config": config,
    }


def write_summary(folder: Path, summary: dict[str, Any], rows: list[Row]) -> None:
    """Writes picture, table and summary; the summary last, it marks the end."""
    aside = folder / ".curves.png"
    with optional("curves.png"):
        figures.draw_curves(rows, aside)
        os.replace(aside, folder / "curves.png")
    write_text(folder / "summary.md", markdown(summary))
    write_json(folder / "summary.json", summary)


def table(summary: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Lays the accuracies out: one line per test, one column per arm, in per cent."""
    accuracy = summary["accuracy"]
    header = ["test", *accuracy]
    lines = [
        [test, *(_cell(of_arm.get(test)) for of_arm in accuracy.values())]
        for test in evaluation.TESTS
        if any(test in of_arm for of_arm in accuracy.values())
    ]
    return header, lines


def _cell(found: dict[str, Any] | None) -> str:
    if found is None:
        return "-"
    mean = f"{100 * found['mean']:.1f}"
    several = len(found["values"]) > 1
    return f"{mean} ± {100 * found['std']:.1f}" if several else mean


def markdown(summary: dict[str, Any]) -> str:
    """Writes the summary down as Markdown."""
    config, speed = summary["config"], summary["throughput"]
    header, lines = table(summary)
    words = "\n".join(
        f"- `{line[0]}`: {evaluation.TESTS[line[0]].words}" for line in lines
    )
    cohort = config["cohort"] or "all"
    return f"""\
# Federated training of `{config["model"]}` on `{config["data"]}`

{config["clients"]} clients ({cohort} in each round), partition `{config["partition"]}`,
{config["rounds"]} rounds, batch {config["batch"]}, seed {config["seed"]}, matmul
precision `{config["precision"]}`.

Accuracy on test examples in %: mean ± sample standard deviation over clients and random
draws, one number where there is only one. A test without a meaning for an arm is `-`.

{tabulate(lines, header, tablefmt="github", disable_numparse=True)}

{words}

Throughput: {speed["clients_per_s"]:.2f} clients/s, {speed["examples_per_s"]:.0f}
examples/s on {speed["device"]} ({speed["run_s"]:.1f} s running,
{speed["compile_s"]:.1f} s compiling; without evaluation).

Images: {config["data_licence"]}
"""
