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
def claim_folder(folder: Path) -> Iterator[None]:
    """Claims a folder for one job.

    Raises:
      FileExistsError: if another job is at work in the folder; it says who.
      OSError: if the folder is not there or cannot be written.
    """
    holder = folder / ".holder.json"
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(_locked(folder / ".claim", blocking=False))
        except Timeout:
            raise FileExistsError(
                f"another job is at work in {str(folder)!r} ({_who(holder)}): wait "
                "for it, or name another folder"
            ) from None
        write_json(holder, Holder(host=socket.gethostname(), pid=os.getpid()))
        # Removed before the lock is given back.
        held.callback(holder.unlink, missing_ok=True)
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


def _who(holder: Path) -> str:
    try:
        who = read_json(holder, Holder)
    except DamagedFile:
        who = None
    return ".claim is held" if who is None else f"process {who['pid']} on {who['host']}"
