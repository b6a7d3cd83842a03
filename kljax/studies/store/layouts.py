"""Layouts of a study: how each group was laid over the machine when it began.

Written down, so that whoever goes on computes the same blocks and gets the same bits.
"""

import dataclasses
from pathlib import Path

from kljax.core.files import converted, read_json, write_json
from kljax.parallel import Layout

REMEDY = "remove it: another is found, and the last bits of results may differ"


def read_layout(folder: Path, group: str) -> Layout | None:
    """Reads the layout of a group; None if it has not begun.

    Raises:
      DamagedFile: if it is not what was written.
    """
    path = _path(folder, group)
    there = read_json(path, remedy=REMEDY)
    return None if there is None else converted(there, Layout, path, remedy=REMEDY)


def keep_layout(folder: Path, group: str, layout: Layout) -> None:
    """Writes the layout of a group.

    Raises:
      OSError: if it cannot be written.
    """
    path = _path(folder, group)
    try:
        path.parent.mkdir(exist_ok=True)
        write_json(path, dataclasses.asdict(layout))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _path(folder: Path, group: str) -> Path:
    return folder / "layouts" / f"{group}.json"
