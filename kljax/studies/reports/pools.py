"""Pools: rows that are averaged, of cells that differ in repetitions alone."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas

from kljax.metrics import Column
from kljax.metrics.kinds import KINDS
from kljax.studies import store
from kljax.studies.frames import study_frame
from kljax.studies.reports.axes import INPUT, NO_INPUT, Axis, point_of
from kljax.studies.reports.kinds import find_words, kind_of
from kljax.studies.reports.values import values_of
from kljax.studies.store import Study

# Of all kinds of inputs; a study has those of its own.
FLOORS = tuple(dict.fromkeys(name for kind in KINDS.values() for name in kind.floors))

FLOOR = store.FLOOR


class Pool(NamedTuple):
    """The cells at one point of all axes but those of repetitions.

    Attributes:
      point: axis -> label.
      cells: of the manifest, finished or not.
      rows: of attacks, as far as they are finished; one per image.
      floors: name -> rows of that floor, of the same cells and victims as `rows`.
      failed: how many cells failed and are not finished.
      first_row: of the same cells: of several inputs, it is of the primary one.
      values: what of the rows can be tabled: name -> column.
    """

    point: dict[str, str]
    cells: tuple[dict[str, Any], ...]
    rows: pandas.DataFrame
    floors: dict[str, pandas.DataFrame]
    failed: int
    first_row: Mapping[str, Any]
    values: Mapping[str, Column]

    @property
    def kind(self) -> str:
        """Names the kind of its inputs; the axes tell kinds apart, as all data."""
        return kind_of(_first_row(self.rows))

    @property
    def input(self) -> str | None:
        """Names its input, of several; a single one has no name."""
        return _first_row(self.rows).get("input")

    @property
    def primary(self) -> str:
        """Names the score that says how near its guesses are."""
        return find_words(self.kind).primary

    @property
    def attacked(self) -> int:
        """Counts the victims that are attacked: uploads, of one or several images.

        An upload has a row for each example. Before schema version 4 it had one, with
        the means over its examples, and ``example`` is null there.
        """
        return int((self.rows["example"].fillna(0) == 0).sum())

    @property
    def expected(self) -> int:
        """Counts the victims that there will be in the end."""
        return sum(cell["config"]["victims"] for cell in self.cells)

    @property
    def state(self) -> str:
        """Says how far it is: ``finished``, ``partial``, ``failed`` or ``not run``."""
        if self.attacked >= self.expected:
            return "finished"
        if self.failed:
            return "failed"
        return "partial" if len(self.rows) else "not run"


def make_pools(
    study: Study, axes: dict[str, Axis], pooled: Sequence[str]
) -> list[Pool]:
    """Pools the rows of a study, in the order of the axes.

    Args:
      study: as it was read.
      axes: of the study.
      pooled: axes over which is pooled.
    """
    rows = study_frame(study).sort_values("cell", kind="stable")  # as in the manifest
    of_floor = rows["arm"].astype(str).str.startswith(FLOOR)
    attacked, values = rows[~of_floor], values_of(study)
    # A floor of a victim who has not been attacked yet would be compared with others.
    floors = rows[of_floor].merge(attacked[["cell", "victim"]].drop_duplicates())
    missing = {cell["id"] for cell in store.missing_cells(study)}
    failed = {failure["cell"] for failure in study.failures} & missing
    gathered: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    names = [name for name in axes if name not in (*pooled, INPUT)]
    for cell in study.manifest["cells"]:
        point = point_of(cell, axes)
        gathered.setdefault(tuple(point[name] for name in names), []).append(cell)

    def place(labels: tuple[str, ...]) -> list[int]:
        pairs = zip(names, labels, strict=True)
        return [axes[name].labels.index(label) for name, label in pairs]

    pools = []
    for labels in sorted(gathered, key=place):
        cells, point = gathered[labels], dict(zip(names, labels, strict=True))
        ids = [cell["id"] for cell in cells]
        own, beside = (some[some["cell"].isin(ids)] for some in (attacked, floors))
        for label in _inputs(own, cells, attacked) if INPUT in axes else [None]:
            own_rows, floor_rows = (_of_input(some, label) for some in (own, beside))
            by_arm = floor_rows.groupby("arm", observed=True)
            pools.append(
                Pool(
                    point if label is None else point | {INPUT: label},
                    tuple(cells),
                    own_rows,
                    {n: by_arm.get_group(FLOOR + n) for n in _floor_names(by_arm)},
                    len(failed.intersection(ids)),
                    _first_row(own),
                    values,
                )
            )
    return pools


def _inputs(
    rows: pandas.DataFrame,
    cells: Sequence[Mapping[str, Any]],
    attacked: pandas.DataFrame,
) -> list[str]:
    """Lists the inputs of some cells; before they have rows, those of the same data."""
    if not len(rows):
        names = [cell["config"].get("data") for cell in cells]
        rows = attacked[attacked["data"].isin(names)]
    return list(_input_labels(rows).unique()) or [NO_INPUT]


def _of_input(rows: pandas.DataFrame, label: str | None) -> pandas.DataFrame:
    """Takes the rows of one input; all of them where inputs are not told apart."""
    return rows if label is None else rows[_input_labels(rows) == label]


def _input_labels(rows: pandas.DataFrame) -> pandas.Series:
    names = rows["input"].astype(object)
    return names.where(names.notna(), NO_INPUT)


def _first_row(rows: pandas.DataFrame) -> dict[str, Any]:
    """Reads what the first of some rows is of; without rows nothing is known."""
    first = rows[["kind", "text", "input"]].head(1).astype(object)
    found = first.where(first.notna(), None).to_dict("records")
    return found[0] if found else {}


def with_several(cells: Sequence[Mapping[str, Any]]) -> set[str]:
    """Finds the cells, by id, whose uploads are of several examples.

    Before schema version 4 their rows are means over these.
    """
    return {
        cell["id"]
        for cell in cells
        # An update's number of examples is settled when it is run.
        if cell["config"].get("examples", 1) > 1
        or (cell["config"].get("average_clients") or 1) > 1
        or cell["config"].get("upload") == "update"
    }


def _floor_names(by_arm: Any) -> list[str]:
    """Lists the floors of a frame that is grouped by arm, as they are always listed."""
    names = [str(arm).removeprefix(FLOOR) for arm in by_arm.groups]
    return sorted(names, key=lambda n: FLOORS.index(n) if n in FLOORS else len(FLOORS))
