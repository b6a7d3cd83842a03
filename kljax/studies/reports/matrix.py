"""The matrix of pictures: one victim's image as each attack finds it in each arm.

The victim is the first of the study, so that nothing about it is chosen.
"""

import collections
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from kljax.core.files import DamagedFile
from kljax.studies import store
from kljax.studies.reports.axes import Arrangement
from kljax.studies.reports.gallery import to_png
from kljax.studies.reports.pools import Pool
from kljax.studies.reports.tables import at_words
from kljax.studies.store import Study

MOST = 400  # pictures on the page


class Matrix(NamedTuple):
    """Pictures by rows and columns.

    Attributes:
      title: where it stands on the other axes; may be empty.
      columns: names.
      lines: name of each row, and its pictures (truth, guess) as PNG; None where there
        is none.
      left_out: places that are not drawn, to keep the page small.
    """

    title: str
    columns: tuple[str, ...]
    lines: tuple[tuple[str, tuple[tuple[bytes, bytes] | None, ...]], ...]
    left_out: int = 0


def make_matrices(
    study: Study, pools: Sequence[Pool], arrangement: Arrangement
) -> list[Matrix]:
    """Makes a matrix for every table that `pivot_tables` makes, of images alone.

    Empty where no images are kept, and where no table has a second column: there the
    gallery shows all.
    """
    slices: dict[str, dict[tuple[str, str], tuple[bytes, bytes] | None]] = {}
    left, left_out = MOST, collections.Counter()
    for pool in pools:
        row, column = (
            " ".join(pool.point[a] for a in axes if a in pool.point)
            for axes in (arrangement.rows, arrangement.columns)
        )
        rest = {a: pool.point[a] for a in arrangement.slices if a in pool.point}
        if not left:
            left_out[at_words(rest)] += 1
            continue
        pair = _first_pair(study, pool)
        left -= pair is not None
        slices.setdefault(at_words(rest), {})[row, column] = pair
    matrices = []
    for title, places in slices.items():
        columns = tuple(dict.fromkeys(column for _, column in places))
        rows = dict.fromkeys(row for row, _ in places)
        lines = tuple(
            (row, tuple(places.get((row, column)) for column in columns))
            for row in rows
        )
        lines = tuple(line for line in lines if any(line[1]))
        if lines and len(columns) > 1:
            matrices.append(Matrix(title, columns, lines, left_out[title]))
    return matrices


def _first_pair(study: Study, pool: Pool) -> tuple[bytes, bytes] | None:
    """Draws truth and guess of the first image of a pool; None where there is none."""
    if pool.kind != "image" or pool.input is not None or not len(pool.rows):
        return None
    for cell in pool.cells:
        try:
            arrays = store.read_reconstructions(study, cell["id"])
        except DamagedFile:  # the gallery names it
            continue
        if arrays is not None and len(arrays["victim"]):
            pair = (arrays[name][0][0] for name in ("truths", "images"))
            return tuple(to_png(np.asarray(image)) for image in pair)
    return None
