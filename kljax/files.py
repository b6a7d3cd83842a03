"""Files that are there whole or not at all."""

import json
import math
import os
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all; line ends stay as they are."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all.

    It is written aside, brought to the disk and renamed: a process killed at any
    moment, or a disk that is full, leaves the old file or none.

    Raises:
      OSError: if it cannot be written; nothing is left of it.
    """
    aside = path.with_name(f".{path.name}")
    try:
        with open(aside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def _sync(folder: Path) -> None:
    """Brings the names in a folder to the disk; a renamed file is lost without."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, content: Any) -> None:
    """Writes JSON; NaN and infinities, which it has not, become null."""
    text = json.dumps(_without_nan(content), indent=2, default=str, allow_nan=False)
    write_text(path, text + "\n")


def read_json(path: Path) -> Any | None:
    """Reads JSON; None if the file is not there.

    Raises:
      ValueError: for a file that is broken; it is named.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error


def _without_nan(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _without_nan(value) for name, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_without_nan(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content
