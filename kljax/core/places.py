"""Where kljax keeps what it can make again: the user's cache folder."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Names kljax's folder in the user's cache (``XDG_CACHE_HOME``, ``~/.cache``)."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "kljax"
