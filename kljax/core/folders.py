"""Run folders that appear whole or not at all, and are claimed before the work.

Whoever computes for hours first proves that the result can be written: a folder aside,
beside the run folder to be, is made and keeps room on the disk. In the end it gets its
name in one step. What has been written into it by then is never thrown away.
"""

import contextlib
import errno
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from kljax.core.files import write_text

MOST_ROOM = 2**28  # bytes to keep; whether more is asked for in earnest shows later

# What file systems say that cannot take room but by writing.
UNKNOWN_CALL = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)


class LeftOut(UserWarning):
    """An optional part of a result is missing, and the rest is not."""


@contextlib.contextmanager
def optional(part: str) -> Iterator[list[str]]:
    """Leaves out a part that fails, with a warning: a picture never costs a result.

    Args:
      part: name of what is made.

    Yields:
      A list that has the words of the warning in the end, if there is one.
    """
    words: list[str] = []
    try:
        yield words
    except Exception as error:
        words.append(f"{part} is left out: {error}")
        warnings.warn(words[0], LeftOut, stacklevel=3)


class NotWritten(OSError):
    """A result that could not be written where it was wanted.

    Attributes:
      texts: name -> content of what could not be rescued either; empty if all is.
    """

    def __init__(self, message: str, texts: Mapping[str, str] | None = None):
        super().__init__(message)
        self.texts = dict(texts or {})


class RunFolder:
    """A run folder on its way.

    Attributes:
      folder: its name; another one once it is written if the name was taken meanwhile.
      aside: where to write.
      room: file without a name that keeps room on the disk until something is written;
        it is gone with the process, however that ends.
    """

    def __init__(self, folder: Path, aside: Path):
        self.folder, self.aside = folder, aside
        self.room: IO[bytes] | None = None

    def write_first(self, texts: Mapping[str, str]) -> None:
        """Writes what must not be lost, before anything else.

        Args:
          texts: file name -> content.

        Raises:
          NotWritten: if there is no room; the texts are in a folder for temporary
            files, which is named, or in the error.
        """
        self._free_room()
        try:
            for name, text in texts.items():
                write_text(self.aside / name, text)
        except OSError as error:
            raise _rescued(self.folder, texts, error) from error

    def _keep_room(self, size: int) -> None:
        self.room = tempfile.TemporaryFile(dir=self.aside)
        _reserve(self.room, size)

    def _free_room(self) -> None:
        if self.room is not None:
            self.room.close()

    def _publish(self) -> None:
        self._free_room()
        self.aside.chmod(0o755)  # mkdtemp makes it private
        self.folder = _rename_free(self.aside, self.folder)

    def _give_up(self, error: BaseException) -> None:
        """Keeps what is written, under a name that can be seen; removes the rest."""
        with contextlib.suppress(OSError):
            self._free_room()
        if not self.aside.is_dir() or not any(self.aside.iterdir()):
            shutil.rmtree(self.aside, ignore_errors=True)
            return
        rescued = self.aside
        name = f"{self.folder.name}-unfinished"
        with contextlib.suppress(OSError):
            rescued = _rename_free(self.aside, self.folder.with_name(name))
        names = ", ".join(sorted(path.name for path in rescued.iterdir()))
        words = f"what was written before is kept in {str(rescued)!r}: {names}"
        if isinstance(error, OSError):
            raise NotWritten(
                f"run folder {str(self.folder)!r} could not be written ({error}); "
                f"{words}"
            ) from error
        error.add_note(f"kljax: {words}")


@contextlib.contextmanager
def claim(folder: Path, room: int = 2**20) -> Iterator[RunFolder]:
    """Claims a run folder for the time that a result is computed and written.

    Args:
      folder: to be; it must not be there.
      room: bytes that the result will take, roughly; they are taken from the disk at
        once, `MOST_ROOM` at most, so that they are there in the end.

    Yields:
      The folder on its way. Left without an error it appears, whole; if its name was
      taken meanwhile, under the name with a number, which `RunFolder.folder` says. If
      an error comes before anything was written, nothing is left of it.

    Raises:
      FileExistsError: if `folder` is there already; nothing is touched.
      OSError: if it cannot be written, or if there is no room.
      NotWritten: if writing failed in the end; it says where the parts are.
    """
    parents: list[Path] = []
    try:
        check_free(folder)
        parents = _make_parents(folder.parent)
        with contextlib.suppress(FileNotFoundError):
            os.lstat(folder)  # too long a name is none; the file system says so
        # Short, so that whatever name is legal has a folder aside, too.
        aside = Path(tempfile.mkdtemp(prefix=".kljax-", dir=folder.parent))
    except (OSError, ValueError) as error:
        _remove_empty(parents)
        if os.path.lexists(folder):
            raise
        raise _unwritable(folder, error) from error
    claimed = RunFolder(folder, aside)
    try:
        try:
            claimed._keep_room(min(room, MOST_ROOM))
        except OSError as error:
            raise _unwritable(folder, error) from error
        yield claimed
        claimed._publish()
    except BaseException as error:
        try:
            claimed._give_up(error)
        finally:
            _remove_empty(parents)
        raise


def check_free(folder: Path) -> None:
    """Raises `FileExistsError` if `folder` exists."""
    if os.path.lexists(folder):
        raise FileExistsError(
            f"run folder {str(folder)!r} exists: name another with --out, or remove it"
        )


def _unwritable(folder: Path, error: Exception) -> OSError:
    why = getattr(error, "strerror", None) or error
    return OSError(
        f"run folder {str(folder)!r} cannot be written ({why}): name another with "
        "--out, or make room for it"
    )


def _make_parents(folder: Path) -> list[Path]:
    """Makes a folder and those above it; returns the new ones, innermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{str(path)!r} is no folder")
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):  # not empty, or never made
            folder.rmdir()


def _reserve(file: IO[bytes], size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        try:
            return os.posix_fallocate(file.fileno(), 0, max(1, size))
        except OSError as error:
            if error.errno not in UNKNOWN_CALL:
                raise
    for start in range(0, size, 2**20):
        file.write(bytes(min(2**20, size - start)))
    file.flush()
    os.fsync(file.fileno())


def _rename_free(aside: Path, folder: Path) -> Path:
    """Renames a folder to a name that is free, with a number if need be."""
    number = 1
    while True:
        name = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        # A folder that is there and empty would be replaced without a word.
        if not os.path.lexists(name):
            try:
                os.rename(aside, name)
                return name
            except OSError:
                if not os.path.lexists(name):
                    raise
        number += 1


def _rescued(folder: Path, texts: Mapping[str, str], error: OSError) -> NotWritten:
    words = f"run folder {str(folder)!r} could not be written ({error})"
    try:
        place = Path(tempfile.mkdtemp(prefix="kljax-"))
        for name, text in texts.items():
            write_text(place / name, text)
    except OSError as worse:
        return NotWritten(f"{words}, nor could a temporary one ({worse})", texts)
    names = ", ".join(texts)
    return NotWritten(f"{words}; {names} were rescued to {str(place)!r}")
