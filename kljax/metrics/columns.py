"""What a column of rows is: its name, its type, what it means and how it is written.

`kljax.metrics.column_table.COLUMNS` has a row for each column that kljax makes; a
metric or an attack of your own brings its own. Rows, Parquet files, CSV files,
summaries, tables, reports, help texts and data frames read nothing else.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from kljax.core.registry import nearest

# As Arrow and NumPy call them.
DTYPES = ("string", "int32", "int64", "float64", "bool")
NAME = re.compile(r"[a-z][a-z0-9_]*")
# Where columns are tabled unasked: what is shown in one place is in those before, too.
PLACES = ("summary", "report", "terminal")
# What columns of one unit have in common.
SIMILARITY: dict[str, Any] = {"unit": "[-1, 1]", "form": ".3f", "leaks": 1}
SHARE: dict[str, Any] = {"unit": "[0, 1]", "form": ".0%"}
DECIBEL: dict[str, Any] = {"unit": "dB", "form": ".1f", "leaks": 1}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """One column of the rows, which are one per image and arm.

    Attributes:
      name: lower-case letters, digits and ``_``.
      dtype: one of `DTYPES`; whatever it is, a value may be missing.
      meaning: in words, without a full stop.
      unit: unit or range of its values.
      knows: whether an ``attacker`` could have it, or only the ``scorer``, who has the
        true images.
      rows: which rows have it: ``all``; those of an ``attack``, and not of floors; or
        those of a ``search``, and not of closed forms.
      option: field of `kljax.LeakConfig` that it repeats; None for all others.
      reported: whether attacks report it themselves, as one of the ``numbers`` of a
        `kljax.attacks.Reconstruction`.
      words: what it is called in tables.
      form: how its mean is written, for `format`; empty for what has no mean.
      leaks: 1 if a higher value leaks more, -1 if a lower one does, 0 if it does not
        tell.
      rate: whether each value is 0 or 1, so that the mean is the rate of images that
        have it.
      shown: where its mean is tabled unasked, one of `PLACES` and those before it;
        None for nowhere.
      formerly: its name in rows of an older kljax; empty for the same.

    Raises:
      ValueError: for a name, type or form that is none, and any other choice that
        there is not.
    """

    name: str
    dtype: str = "float64"
    meaning: str
    unit: str = ""
    knows: Literal["attacker", "scorer"] = "scorer"
    rows: Literal["all", "attack", "search"] = "all"
    option: str | None = None
    reported: bool = False
    words: str = ""
    form: str = ""
    leaks: int = 0
    rate: bool = False
    shown: str | None = None
    formerly: str = ""

    def __post_init__(self):
        if not NAME.fullmatch(self.name):
            raise ValueError(
                f"column {self.name!r}: a name has lower-case letters, digits and _, "
                "and begins with a letter"
            )
        choices = {
            "dtype": DTYPES,
            "knows": ("attacker", "scorer"),
            "rows": ("all", "attack", "search"),
            "leaks": (-1, 0, 1),
            "shown": (None, *PLACES),
        }
        for field, legal in choices.items():
            found = getattr(self, field)
            if found not in legal:
                raise ValueError(
                    f"column {self.name!r}: {field} is {found!r}; it must be one of "
                    f"{', '.join(map(repr, legal))}"
                )
        if not self.form:
            return
        try:
            format(0.5, self.form)
        except ValueError as error:
            raise ValueError(
                f"column {self.name!r}: form {self.form!r} writes no number ({error})"
            ) from None
        if self.dtype == "string":
            raise ValueError(f"column {self.name!r}: text has no mean, and no form")

    @property
    def heading(self) -> str:
        """Names it in tables."""
        return self.words or self.name

    @property
    def is_value(self) -> bool:
        """Tells whether its mean can be tabled."""
        return bool(self.form)

    @property
    def is_share(self) -> bool:
        """Tells whether its mean is a share: of victims, or of their examples."""
        return self.form.endswith("%")

    def shown_in(self, place: str) -> bool:
        """Tells whether its mean is tabled in a place, unasked."""
        if self.shown is None:
            return False
        return PLACES.index(place) <= PLACES.index(self.shown)

    def written(self, number: float | None) -> str:
        """Writes a mean; ``-`` where there is none."""
        if number is None or not math.isfinite(number):
            return "-"
        return format(number, self.form)


def column_to_dict(column: Column) -> dict[str, Any]:
    """Writes a column for JSON."""
    return dataclasses.asdict(column)


def column_from_dict(content: Mapping[str, Any]) -> Column:
    """Reads a column; what later versions say of columns is left out.

    Raises:
      ValueError: see `Column`.
      TypeError: for a column without a name or a meaning.
    """
    fields = {field.name for field in dataclasses.fields(Column)}
    return Column(**{name: at for name, at in content.items() if name in fields})


def by_name(columns: Iterable[Column]) -> dict[str, Column]:
    """Puts columns into a table, in their order.

    Raises:
      ValueError: for a name that is there twice.
    """
    table: dict[str, Column] = {}
    for column in columns:
        if column.name in table:
            raise ValueError(
                f"column {column.name!r} is there twice ({table[column.name].meaning}; "
                f"{column.meaning}): rename one"
            )
        table[column.name] = column
    return table


def names_today(columns: Iterable[Column]) -> dict[str, str]:
    """Maps the names that columns had in rows of an older kljax to those of today."""
    return {column.formerly: column.name for column in columns if column.formerly}


def find_value(name: str, columns: Mapping[str, Column]) -> Column:
    """Finds a column whose mean can be tabled.

    Raises:
      ValueError: for one that cannot, or does not exist, with the nearest one.
    """
    values = {column.name: column for column in columns.values() if column.is_value}
    if name not in values:
        raise ValueError(
            f"unknown value {name!r}{nearest(name, values)}; known: {', '.join(values)}"
        )
    return values[name]


def guide(columns: Iterable[Column]) -> Iterator[tuple[str, str]]:
    """Lays columns out for people: name and facts of each, and what it means."""
    ends = {1: "higher leaks more", -1: "lower leaks more", 0: ""}
    for column in columns:
        facts = (
            column.dtype,
            column.unit,
            ends[column.leaks],
            f"{column.knows} knows",
            f"option {column.option}" if column.option else "",
            {"all": "", "attack": "of attacks", "search": "of searches"}[column.rows],
        )
        yield f"{column.name} ({', '.join(filter(None, facts))})", column.meaning
