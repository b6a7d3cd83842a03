"""Claims: who works in a folder, so that no second job does.

A claim is a lock of the operating system on a hidden file in the folder. It ends with
the process that holds it, however that ends. Another file says who that is. Both files
are removed at the end; where a process was killed they stay, and mean nothing.
"""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

from filelock import FileLock, Timeout

from kljax.core.files import DamagedFile, read_json, write_json


class Holder(TypedDict):
    """Who took a claim."""

    host: str
    pid: int


@contextlib.contextmanager
def claim_folder(folder: Path, process: int = 0, processes: int = 1) -> Iterator[None]:
    """Claims a folder for one process of a job.

    Args:
      folder: that is worked in.
      process, processes: the number of this process, of how many in the job.

    Raises:
      FileExistsError: if this number, or a job of another number of processes, is at
        work in the folder; it says who.
      OSError: if the folder is not there or cannot be written.
    """
    own = f"{process}-of-{processes}"
    with contextlib.ExitStack() as held:
        # Looking at a claim takes it for a moment, so one process looks at a time.
        with lock_file(folder / ".claims.lock"):
            _take(folder, own, held)
            for path in sorted(folder.glob(".claim-*-of-*")):
                if not path.name.endswith(f"-of-{processes}"):
                    with contextlib.ExitStack() as tried:
                        _take(folder, path.name.removeprefix(".claim-"), tried)
            who = Holder(host=socket.gethostname(), pid=os.getpid())
            write_json(_holder(folder, own), who)
        # Removed before the lock is given back.
        held.callback(_holder(folder, own).unlink, missing_ok=True)
        yield


@contextlib.contextmanager
def lock_file(path: Path) -> Iterator[None]:
    """Waits until no other process is here.

    For the moment that it takes to write a file which several processes may write.

    Args:
      path: of a file for the lock; it is made if it is not there.
    """
    with _locked(path, poll_interval=0.005):
        yield


@contextlib.contextmanager
def _locked(path: Path, **options) -> Iterator[None]:
    with FileLock(path, **options):
        try:
            yield
        finally:
            # Whoever waits for a file that was removed notices it. Windows removes it
            # when it is released.
            with contextlib.suppress(OSError):
                path.unlink()


def _take(folder: Path, claim: str, held: contextlib.ExitStack) -> None:
    try:
        held.enter_context(_locked(folder / f".claim-{claim}", blocking=False))
    except Timeout:
        raise FileExistsError(
            f"another job is at work in {str(folder)!r} ({_who(folder, claim)}): wait "
            "for it, or name another folder"
        ) from None


def _who(folder: Path, claim: str) -> str:
    try:
        holder = read_json(_holder(folder, claim), Holder)
    except DamagedFile:
        holder = None
    if holder is None:
        return f".claim-{claim} is held"
    return f"process {holder['pid']} on {holder['host']}, {claim.replace('-', ' ')}"


def _holder(folder: Path, claim: str) -> Path:
    return folder / f".holder-{claim}.json"
