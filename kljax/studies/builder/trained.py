"""What an attacker has that was trained on public data: found by name."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from kljax.core.registry import call_named, resolve
from kljax.models.trained_files import list_trained

T = TypeVar("T")


class Kept(NamedTuple):
    """A kind of what is trained, and where the package has its own.

    Attributes:
      kind: what it is called, for errors.
      made: its type.
      folder: of the package's files.
      read: path -> one of them.
      check: ``(one, name)``, which refuses what is not what it says.
    """

    kind: str
    made: type
    folder: Path
    read: Callable[[Path], T]
    check: Callable[[T, str], None]


def find_trained(name: str, kept: Kept) -> T:
    """Finds what a name stands for: a file, one of the package, or a function's.

    Raises:
      FileNotFoundError: if its file is not there.
      ValueError: for an unknown name, a damaged file, a function of your own that gives
        something else, and what `Kept.check` refuses.
    """
    known = list_trained(kept.folder)
    if name.endswith(".npz") or name in known:
        path = Path(name) if name.endswith(".npz") else kept.folder / f"{name}.npz"
        return _read(kept, path.resolve(), path.stat().st_mtime_ns)
    function = resolve(kept.kind, name, dict.fromkeys(known))
    found = call_named(kept.kind, name, function)
    if not isinstance(found, kept.made):
        raise ValueError(
            f"{kept.kind} {name!r} gave {type(found).__name__}, expected a "
            f"{kept.made.__module__}.{kept.made.__name__}"
        )
    kept.check(found, name)
    return found


@functools.lru_cache(maxsize=16)
def _read(kept: Kept, path: Path, changed: int) -> T:
    """Reads a file; a sweep asks for the same one in every cell."""
    del changed  # part of the cache's index
    found = kept.read(path)
    kept.check(found, str(path))
    return found
