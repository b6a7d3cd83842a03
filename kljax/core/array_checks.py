"""Checks of arrays whose rows are examples: each names the row and what would do."""

from collections.abc import Callable
from typing import Any

import numpy as np


def check_integers(values: Any, field: str, name: str, dtype=np.int32) -> np.ndarray:
    """Returns a list of integers as an array [n] of ``dtype``, or refuses it."""
    values = np.asarray(values)
    if values.size and not np.issubdtype(values.dtype, np.integer):
        raise TypeError(f"{field} of {name} are {values.dtype}; give integers")
    if values.ndim != 1:
        raise ValueError(f"{field} of {name} have shape {values.shape}; give a list")
    # A label of 2**32 must not come back as 0.
    limits = np.iinfo(dtype)
    if values.size and (values.min() < limits.min or values.max() > limits.max):
        raise ValueError(f"{field} of {name} do not fit {np.dtype(dtype).name}")
    return values.astype(dtype, copy=False)


def refuse_rows(
    culprits: np.ndarray, rows: np.ndarray, what: str, explain: Callable[[int], str]
) -> None:
    """Raises ValueError at the first of the culprits [n] bool, if there is one.

    Args:
      culprits: which rows are wrong.
      rows: [n], what they are called.
      what: the subject of the sentence, with ``{}`` for the row.
      explain: ``index -> str``, what is wrong with that one.
    """
    if culprits.any():
        first = int(np.argmax(culprits))
        more = int(culprits.sum()) - 1
        also = f" (and {more} more)" if more else ""
        raise ValueError(f"{what.format(rows[first])} {explain(first)}{also}")
