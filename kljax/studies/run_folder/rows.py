"""``metrics.csv``: one row per arm and round."""

import csv
import io
from pathlib import Path
from typing import Any

from kljax.core.files import DamagedFile, read_text, write_text
from kljax.core.registry import unknown_name
from kljax.metrics import RUN_COLUMNS

Row = dict[str, Any]

LOST = (
    "restore it from a copy; without the file the training goes on from its checkpoint "
    "and lacks the rows of earlier rounds"
)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split())


# How a column is read; empty is None.
READ = {"string": str, "int32": int, "int64": int, "float64": float}
COLUMNS = {name: READ[column.dtype] for name, column in RUN_COLUMNS.items()}
COLUMNS["excluded"] = _numbers
OF_SOME = ("attack_success", "epsilon")  # not in the file of a run that has none
MAY_BE_EMPTY = ("loss", "train_accuracy", "test_accuracy", *OF_SOME)


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
    rounds_of_arm = [row["round"] for row in rows if row["arm"] == arm]
    if path.exists() and rounds_of_arm[:rounds] != list(range(rounds)):
        what = f"arm {arm!r} lacks rows of the {rounds} rounds before its checkpoint"
        raise DamagedFile(path, what, remedy=LOST)


def _check_header(path: Path, header: list[str]) -> None:
    for name in header:
        if name not in COLUMNS:
            what = unknown_name("column", name, COLUMNS)
            raise DamagedFile(path, what, remedy=LOST, place="line 1")
    missing = [n for n in COLUMNS if n not in header and n not in OF_SOME]
    if missing:
        what = f"it lacks {', '.join(missing)}"
        raise DamagedFile(path, what, remedy=LOST, place="line 1")


def _read_row(path: Path, number: int, header: list[str], line: list[str]) -> Row:
    place = f"line {number}"
    if len(line) != len(header):
        what = f"it has {len(line)} of {len(header)} fields"
        raise DamagedFile(path, what, remedy=LOST, place=place)
    row = dict.fromkeys(OF_SOME)
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
    absent = [n for n in OF_SOME if all(row.get(n) is None for row in rows)]
    columns = [name for name in COLUMNS if name not in absent]
    writer = csv.DictWriter(text, columns, extrasaction="ignore")
    writer.writeheader()
    for row in rows:
        writer.writerow(row | {"excluded": " ".join(map(str, row["excluded"]))})
    write_text(folder / "metrics.csv", text.getvalue())
