"""Compilations that outlive a process: XLA's persistent cache."""

import os
from pathlib import Path

import jax

FOLDER = "kljax"
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
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(home) / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    if not os.access(folder, os.W_OK):
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    return folder
