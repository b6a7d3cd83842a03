"""The command line: ``kljax leak``, ``train``, ``sweep``, ``report``, ...."""

from kljax.cli.commands import main

__all__ = ["main"]
