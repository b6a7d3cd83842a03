"""The command line: ``kljax leak``, ``train``, ``sweep``, ``report``, ...."""

from kljax.cli.main import main

__all__ = ["main"]
