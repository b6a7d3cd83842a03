"""Claims: who works on a study, so that no second job does.

A claim is an advisory lock of the operating system on a file in the study; it ends with
the process that holds it, however that ends.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def claimed(folder: Path, process: int = 0, processes: int = 1) -> Iterator[None]:
    """Claims a study for one process of a job.

    Args:
      folder: of the study.
      process, processes: the number of this process, of how many in the job.

    Raises:
      FileExistsError: if this number, or a job of another number of processes, is at
        work on the study.
    """
    own = f".claim-{process}-of-{processes}"
    with contextlib.ExitStack() as held:
        if not _take(folder / own, held):
            raise _taken(folder, own)
        for path in sorted(folder.glob(".claim-*-of-*")):
            if path.name.endswith(f"-of-{processes}"):
                continue
            with contextlib.ExitStack() as tried:
                # Shared: a peer may look at what an earlier job left at the same time.
                if not _take(path, tried, fcntl.LOCK_SH):
                    raise _taken(folder, path.name)
        yield


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Waits until no other process is here.

    For the moment that it takes to write a file which several processes may write.

    Args:
      path: of a file for the lock; it is made if it is not there.
    """
    with contextlib.ExitStack() as held:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        held.callback(os.close, handle)
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _take(path: Path, held: contextlib.ExitStack, kind: int = fcntl.LOCK_EX) -> bool:
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    held.callback(os.close, handle)
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _taken(folder: Path, claim: str) -> FileExistsError:
    return FileExistsError(
        f"another job is at work on study {str(folder)!r} ({claim} is held): wait for "
        "it, or name another folder"
    )
