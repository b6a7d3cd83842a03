"""Rows of tables as inputs: continuous columns, and discrete ones as one-hot groups.

A row is a vector [D] in [0, 1]. A continuous column is one entry of it, scaled by its
least and largest value; a discrete one has an entry for each category, of which one is
1 and the others are 0. Which entries belong to which column is said by a `TableColumn`
each, in `InputSpec.columns`.

Letters: n rows, D entries of a row, k columns, c categories.

>>> size = TableColumn("size", (0,), low=10.0, high=20.0, tolerance=0.1)
>>> colour = TableColumn("colour", (1, 2, 3), categories=("red", "green", "blue"))
>>> spec = table_of((size, colour))
>>> encode_rows([[15.0, 2.0]], spec.columns).tolist()
[[0.5, 0.0, 0.0, 1.0]]
>>> spec.spell(np.array([0.5, 0.0, 0.0, 1.0]))
'size=15; colour=blue'
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from kljax.core.array_checks import refuse_rows
from kljax.core.inputs import InputSpec, SearchSpace
from kljax.core.types import Array, Rng

BETWEEN = "; "  # columns of a row that is written in a line


@dataclass(frozen=True)
class TableColumn:
    """One column of a table.

    Attributes:
      name: without ``;`` and ``=``, which stand around values.
      entries: where it is in a row: one entry of a continuous column, or one for each
        category of a discrete one.
      categories: their names, without ``;``, in the order of `entries`; () of a
        continuous column.
      low, high: of a continuous column, the values that 0 and 1 stand for.
      tolerance: of a continuous column, how far a guess may be off and still count as
        right, in units of ``high - low``.

    Raises:
      ValueError: for names with what stands between them, no entries, categories that
        are not one per entry or fewer than two, a range that is none, and a negative
        tolerance.
    """

    name: str
    entries: tuple[int, ...]
    categories: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 1.0
    tolerance: float = 0.0

    def __post_init__(self):
        wrong = None
        if {*";="} & {*self.name} or ";" in "".join(self.categories):
            wrong = "its name must be without ';' and '=', and categories without ';'"
        elif self.categories and len(self.categories) != len(self.entries):
            wrong = (
                f"{len(self.categories)} categories need as many entries of a row, got "
                f"{len(self.entries)}"
            )
        elif len(self.categories) == 1:
            wrong = "a discrete column needs at least two categories"
        elif not self.categories and len(self.entries) != 1:
            wrong = (
                f"a column without categories is continuous and has one entry, got "
                f"{len(self.entries)}"
            )
        elif not np.isfinite([self.low, self.high]).all() or self.low >= self.high:
            wrong = f"low={self.low!r} must be below high={self.high!r}, both finite"
        elif not self.tolerance >= 0:
            wrong = f"tolerance={self.tolerance!r} must be 0 or more"
        if wrong:
            raise ValueError(f"table column {self.name!r}: {wrong}")

    @property
    def is_discrete(self) -> bool:
        """Tells whether it has categories."""
        return bool(self.categories)

    def write(self, row: np.ndarray) -> str:
        """Writes its value in a row [D]: the likeliest category, or a number."""
        own = row[list(self.entries)]
        if self.is_discrete:
            return self.categories[int(np.argmax(own))]
        return f"{self.low + float(own[0]) * (self.high - self.low):.4g}"


def table_of(columns: Sequence[TableColumn]) -> InputSpec:
    """Makes the spec of the rows of a table.

    Attacks look for rows entry by entry, unbounded; what is found is read as the
    likeliest category of each group, and continuous columns are clipped to [0, 1].

    Raises:
      ValueError: for no column, two of one name, and entries that overlap or are left
        out.
    """
    columns = tuple(columns)
    _check_layout(columns)
    width = sum(len(column.entries) for column in columns)
    shape = (width,)

    def check(rows: np.ndarray, places: np.ndarray, name: str) -> np.ndarray:
        return check_rows(rows, places, name, columns)

    return InputSpec(
        kind="table",
        shape=shape,
        dtype=np.float32,
        check=check,
        search=SearchSpace(
            shape=lambda params: shape,
            read=lambda params, fed: read_rows(fed, columns),
            project=lambda latents: jnp.clip(latents, 0.0, 1.0),
        ),
        draw=lambda rng, count: _draw_rows(rng, count, columns),
        spell=lambda row: BETWEEN.join(write_cells(row, columns)),
        columns=columns,
    )


def _check_layout(columns: tuple[TableColumn, ...]) -> None:
    if not columns:
        raise ValueError("a table needs at least one column")
    names, owners = set(), {}
    for column in columns:
        if column.name in names:
            raise ValueError(f"table column {column.name!r} is there twice: rename one")
        names.add(column.name)
        for entry in column.entries:
            if entry in owners:
                raise ValueError(
                    f"table columns {owners[entry]!r} and {column.name!r} overlap: "
                    f"both have entry {entry} of a row"
                )
            owners[entry] = column.name
    missing = set(range(len(owners))).symmetric_difference(owners)
    if missing:
        raise ValueError(
            f"the columns of a table have {len(owners)} entries, which must be 0 to "
            f"{len(owners) - 1}: entry {min(missing)} is amiss"
        )


def check_rows(
    rows: np.ndarray, places: np.ndarray, name: str, columns: Sequence[TableColumn]
) -> np.ndarray:
    """Checks encoded rows [n, D], and returns them as float32.

    Args:
      rows: floating point in [0, 1]; of each group of a discrete column one entry is 1.
      places: [n], what error messages call them.
      name: what error messages call the table.
      columns: of the table.

    Raises:
      TypeError: for another type.
      ValueError: for another number of entries, and, with the row and the column, for
        what is not finite, outside [0, 1], or no single category.
    """
    width = sum(len(column.entries) for column in columns)
    if not np.issubdtype(rows.dtype, np.floating):
        raise TypeError(f"rows of {name} are {rows.dtype}; give floating point")
    if rows.shape[1:] != (width,):
        raise ValueError(
            f"rows of {name} have shape {rows.shape}; give [n, {width}], which is what "
            f"its {len(columns)} columns take"
        )
    what = f"row {{}} of {name}"
    for column in columns:
        own = rows[:, list(column.entries)]
        refuse_rows(
            ~np.isfinite(own).all(axis=1),
            places,
            what,
            lambda i, c=column, own=own: (
                f"has {own[i].tolist()} in column {c.name!r}: not finite"
            ),
        )
        if column.is_discrete:
            refuse_rows(
                (np.sort(own, axis=1) != np.eye(len(column.entries))[-1]).any(axis=1),
                places,
                what,
                lambda i, c=column, own=own: (
                    f"has {own[i].tolist()} in discrete "
                    f"column {c.name!r}; give one 1 and zeros, see "
                    "kljax.core.tables.encode_rows"
                ),
            )
        refuse_rows(
            ((own < 0) | (own > 1)).any(axis=1),
            places,
            what,
            lambda i, c=column, own=own: (
                f"has {own[i, 0]:g} in column {c.name!r}; values must lie in [0, 1]"
            ),
        )
    return rows.astype(np.float32, copy=False)


def encode_rows(values: ArrayLike, columns: Sequence[TableColumn]) -> np.ndarray:
    """Encodes a table [n, k] as rows [n, D].

    Args:
      values: of each column: numbers in [low, high], or, of a discrete one, the place
        of its category, 0 to c - 1.
      columns: k of them.

    Raises:
      ValueError: for another number of columns, and, with the row and the column, for
        what is not finite, no category, or outside of [low, high].
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or values.shape[1] != len(columns):
        raise ValueError(
            f"the table has shape {values.shape}; give [n, {len(columns)}], one number "
            "for each column"
        )
    width = sum(len(column.entries) for column in columns)
    rows, places = np.zeros((len(values), width), np.float32), np.arange(len(values))
    for column, own in zip(columns, values.T, strict=True):
        what = f"row {{}} of the table, column {column.name!r},"

        def refuse(culprits: np.ndarray, wanted: str, what=what, own=own) -> None:
            refuse_rows(
                culprits, places, what, lambda i: f"has {own[i]:g}; give {wanted}"
            )

        refuse(~np.isfinite(own), "a finite number")
        if column.is_discrete:
            count = len(column.categories)
            refuse(
                (own != np.round(own)) | (own < 0) | (own >= count),
                f"the place of one of its {count} categories, 0 to {count - 1}",
            )
            rows[places, np.array(column.entries)[own.astype(int)]] = 1
            continue
        low, high = column.low, column.high
        refuse((own < low) | (own > high), f"a number in [{low:g}, {high:g}]")
        rows[:, column.entries[0]] = (own - low) / (high - low)
    return rows


def read_rows(fed: Array, columns: Sequence[TableColumn]) -> Array:
    """Reads rows [..., D] of any numbers as a table has them: one-hot, and clipped."""
    rows = jnp.clip(fed, 0.0, 1.0)
    for column in columns:
        if column.is_discrete:
            own = fed[..., np.array(column.entries)]
            one = jax.nn.one_hot(jnp.argmax(own, axis=-1), own.shape[-1])
            rows = rows.at[..., np.array(column.entries)].set(one)
    return rows


def relax_rows(latents: Array, columns: Sequence[TableColumn]) -> Array:
    """Makes rows [..., D] of unbounded latents: softmax of groups, sigmoid of numbers.

    Reference: Vero, Balunović, Dimitrov, Vechev, "TabLeak" (ICML 2023), section 4.1;
    its code, eth-sri/tableak, the softmax and sigmoid tricks.
    """
    rows = jax.nn.sigmoid(latents)
    for column in columns:
        if column.is_discrete:
            places = np.array(column.entries)
            rows = rows.at[..., places].set(jax.nn.softmax(latents[..., places]))
    return rows


def write_cells(row: np.ndarray, columns: Sequence[TableColumn]) -> list[str]:
    """Writes a row [D] column by column: ``name=value``."""
    row = np.nan_to_num(np.asarray(row, np.float64))
    return [f"{column.name}={column.write(row)}" for column in columns]


def _draw_rows(rng: Rng, count: int, columns: Sequence[TableColumn]) -> Array:
    width = sum(len(column.entries) for column in columns)
    return read_rows(jax.random.uniform(rng, (count, width)), columns)
