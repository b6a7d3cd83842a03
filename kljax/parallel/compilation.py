"""Compilations that outlive a process: XLA's persistent cache, and how long it took."""

import contextlib
import hashlib
import os
from pathlib import Path

import jax

from kljax.core.files import DamagedFile, read_json, write_json
from kljax.core.places import cache_folder

SECONDS = "kljax_compile_seconds.json"  # in the folder of the cache
MOST = 1000  # programs whose seconds are remembered
DEFAULT_S = 1.0  # JAX's own limit, below which nothing is kept
LEAST_S = 0.1


def use_cache(folder: Path | None = None) -> Path | None:
    """Switches the persistent compilation cache on; a second start finds its work.

    Args:
      folder: of the cache; None for what JAX was told already
        (``JAX_COMPILATION_CACHE_DIR``), or else the user's cache folder
        (``XDG_CACHE_HOME``, ``~/.cache``).

    Returns:
      The folder; None if it cannot be written, where nothing is cached.
    """
    if jax.config.jax_persistent_cache_min_compile_time_secs == DEFAULT_S:
        # Small programs are many, and each costs more to compile than to read.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_S)
    there = jax.config.jax_compilation_cache_dir
    if folder is None and there:
        return Path(there)
    if folder is None:
        folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    if not os.access(folder, os.W_OK):
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return folder


def seconds_of(program: str, folder: Path | None) -> float | None:
    """Tells how long a program took to compile the last time; None if nobody knows.

    Args:
      program: what says which it is.
      folder: of the cache, see `use_cache`.
    """
    return _read_seconds(folder).get(_digest(program))


def remember_seconds(program: str, folder: Path | None, seconds: float) -> None:
    """Writes down how long a program took to compile; for information alone.

    Where the folder cannot be written nothing is remembered. Of two processes at once
    the later one may forget what the earlier one wrote.
    """
    if folder is None:
        return
    known = _read_seconds(folder)
    known.pop(_digest(program), None)
    known = dict([*known.items(), (_digest(program), round(seconds, 1))][-MOST:])
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / SECONDS, known)


def _read_seconds(folder: Path | None) -> dict[str, float]:
    if folder is None:
        return {}
    try:
        return read_json(folder / SECONDS, dict[str, float]) or {}
    except (DamagedFile, OSError):  # nothing depends on it
        return {}


def _digest(program: str) -> str:
    return hashlib.sha256(program.encode()).hexdigest()[:16]
