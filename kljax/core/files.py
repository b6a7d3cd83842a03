"""Files: written whole or not at all, and read back as what was written.

Whoever reads a file says what must be in it by a type: a `typing.TypedDict` for what
stays a dictionary, a dataclass for what becomes one. A file that holds anything else
is a `DamagedFile`, whatever is wrong with it.
"""

import io
import json
import math
import os
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, TypeVar

import msgspec
import numpy as np

T = TypeVar("T")


class DamagedFile(ValueError):
    """A file that is read back and is not what was written.

    Attributes:
      path: of the file.
      remedy: what to do about it.
      place: in the file: a line, a field, a column; empty for all of it.
    """

    def __init__(self, path: Path | str, what: str, *, remedy: str, place: str = ""):
        self.path, self.remedy, self.place = Path(path), remedy, place
        where = f" at {place}" if place else ""
        super().__init__(f"{path} is damaged{where}: {what}; {remedy}")


def brief(error: Exception, most: int = 200) -> str:
    """Writes what a library says of a damaged file as a part of one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else f"{text[:most]}..."


def _opened(file: IO[bytes]) -> np.lib.npyio.NpzFile:
    # NumPy takes whatever else there is for a pickle, and advises to load it.
    if not zipfile.is_zipfile(file):
        raise ValueError("it is no zip archive")
    file.seek(0)
    return np.load(file, allow_pickle=False)


def read_arrays(path: Path, *, remedy: str) -> dict[str, np.ndarray] | None:
    """Reads an ``.npz`` file of arrays; None if it is not there.

    Raises:
      DamagedFile: if it holds anything else.
      PermissionError: if it may not be read.
    """
    try:
        # Opened here: np.load leaves the file of a broken archive open.
        with open(path, "rb") as file, _opened(file) as opened:
            arrays = dict(opened)
        # What is no array in an archive comes as bytes.
        others = [n for n, held in arrays.items() if not isinstance(held, np.ndarray)]
        if others:
            raise ValueError(f"{others[0]} is none")
    except FileNotFoundError:
        return None
    except PermissionError:
        raise
    # What a damaged archive raises is no one kind of error (zlib.error, BadZipFile);
    # a single array that is named .npz, a TypeError.
    except Exception as error:
        what = f"it holds no arrays ({brief(error)})"
        raise DamagedFile(path, what, remedy=remedy) from error
    return arrays


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 whole or not at all; line ends stay as they are."""
    write_bytes(path, text.encode())


def write_arrays(
    path: Path, arrays: Mapping[str, np.ndarray], *, compressed: bool = False
) -> None:
    """Writes an ``.npz`` file as `write_bytes` does.

    Raises:
      OSError: if it cannot be written; nothing is left of it.
    """
    content = io.BytesIO()
    write: Callable[..., None] = np.savez_compressed if compressed else np.savez
    write(content, **arrays)
    write_bytes(path, content.getvalue())


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
    except BaseException as error:
        aside.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename is None:
            error.filename = str(path)  # a full disk does not say whose
        raise
    _sync(path.parent)


def _sync(folder: Path) -> None:
    """Brings the names in a folder to the disk; a renamed file is lost without."""
    if os.name == "nt":  # Windows opens no folder, and keeps names by itself
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, content: Any) -> None:
    """Writes JSON; NaN and infinities, which it has not, become null."""
    write_text(path, json_text(content))


def json_text(content: Any) -> str:
    """Gives the JSON text of `content`; NaN and infinities become null."""
    text = json.dumps(_without_nan(content), indent=2, default=str, allow_nan=False)
    return text + "\n"


def read_text(path: Path, *, remedy: str = "save it as UTF-8") -> str:
    """Reads text in UTF-8, with a byte-order mark or without.

    Raises:
      FileNotFoundError: if the file is not there.
      DamagedFile: for another encoding.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = f"byte {error.start}"
        raise DamagedFile(path, "it is not UTF-8", remedy=remedy, place=place) from None


def read_json(path: Path, kind: Any = Any, *, remedy: str = "restore it") -> Any | None:
    """Reads JSON; None if the file is not there.

    Args:
      path: of the file.
      kind: type that the content must have, and never null; fields that it does not
        name stay.
      remedy: what to do if it has not.

    Raises:
      DamagedFile: for a file that is broken or holds something else.
    """
    try:
        content = json.loads(read_text(path, remedy=remedy))
    except FileNotFoundError:
        return None
    except DamagedFile:
        raise
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        what = f"it is no JSON ({error.msg})"
        raise DamagedFile(path, what, remedy=remedy, place=place) from None
    except (ValueError, RecursionError) as error:  # a number, a nesting without end
        raise DamagedFile(path, f"it is no JSON ({error})", remedy=remedy) from None
    if content is None:  # or it would pass for a file that is not there
        raise DamagedFile(path, "it holds null, and nothing else", remedy=remedy)
    converted(content, kind, path, remedy=remedy)
    return content


def converted(content: Any, kind: type[T], path: Path, *, remedy: str) -> T:
    """Makes a value of a type from what a file holds; lists become tuples.

    Args:
      content: of the file, or a part of it.
      kind: the type, dataclasses with their checks included.
      path, remedy: see `DamagedFile`.

    Raises:
      DamagedFile: if the content has not this type; the place is named.
    """
    try:
        return msgspec.convert(content, kind)
    except (msgspec.ValidationError, RecursionError) as error:
        what, _, place = str(error).partition(" - at `$")
        what = re.sub(r"^E", "e", what)
        place = place.rstrip("`").lstrip(".")
        raise DamagedFile(path, what, remedy=remedy, place=place) from None


def _without_nan(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _without_nan(value) for name, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_without_nan(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content
