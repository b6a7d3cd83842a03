"""The run folder of a training: what is written while it runs, and what is read again.

``config.json`` comes first and says which run it is. ``metrics.csv`` has one row per
arm and round; ``summary.json``, ``summary.md`` and ``curves.png`` come last. Each file
is written aside and renamed, so that a run killed at any moment leaves whole files. A
run with attackers has a second one in ``honest/``: the same clients without attackers.
"""

from kljax.studies.run_folder.configuration import (
    SCHEMA_VERSION,
    check_same,
    describe,
    read_config,
)
from kljax.studies.run_folder.rows import (
    COLUMNS,
    Row,
    check_rows,
    read_rows,
    write_rows,
)
from kljax.studies.run_folder.summary import (
    ACCURACY,
    MEASURES,
    Accuracy,
    Summary,
    Throughput,
    markdown,
    measured,
    read_accuracy,
    read_summary,
    summarise,
    table,
    write_summary,
)
from kljax.studies.run_folder.tensorboard import boards, write_board

__all__ = [
    "SCHEMA_VERSION",
    "check_same",
    "read_config",
    "describe",
    "Row",
    "COLUMNS",
    "read_rows",
    "check_rows",
    "write_rows",
    "boards",
    "write_board",
    "ACCURACY",
    "MEASURES",
    "Accuracy",
    "Throughput",
    "Summary",
    "read_summary",
    "read_accuracy",
    "summarise",
    "write_summary",
    "table",
    "markdown",
    "measured",
]
