"""Runs the command line as ``python -m kljax``."""

import sys

from kljax.cli import main

sys.exit(main())
