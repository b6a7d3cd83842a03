"""The axes of a study: what each one changes, and which become rows and columns."""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from kljax.core.registry import nearest
from kljax.defences.arm_options import spell_numbers

ARM = "arm"
# Of several inputs of an example, which one is scored. No sweep has an axis of this
# name: it has a space.
INPUT = "scored input"
NO_INPUT = "-"  # where there is a single one
# What changes from one repetition to the next: another seed, on another network of the
# same making, perhaps.
REPEATED = frozenset({"seed", "from_run"})
BUDGET = frozenset({"steps", "restarts"})
# Fields that say who the victims are; arms that differ in one of them share none.
WHO = frozenset(
    {
        "data",
        "split",
        "data_dir",
        "image_size",
        "image_width",
        "channels",
        "tokens",
        "examples",
        "average_clients",
        "seed",
        "from_run",
        "client",
        "batch",
        "local_steps",
        "local_epochs",
    }
)


class Axis(NamedTuple):
    """An axis of a study.

    Attributes:
      name: as in the sweep file.
      labels: of its points, in order.
      fields: that its points set.
      spellings: of points that stand under the label of another, label by label.
    """

    name: str
    labels: tuple[str, ...]
    fields: frozenset[str]
    spellings: Mapping[str, str] = MappingProxyType({})

    @property
    def repeats(self) -> bool:
        """Tells whether its points are repetitions: they set the seed and, at most,
        the run that the network comes from. Those are pooled."""
        return "seed" in self.fields and self.fields <= REPEATED

    @property
    def budgets(self) -> bool:
        """Tells whether its points set how long an attack may try, and no more."""
        return bool(self.fields) and self.fields <= BUDGET


def axes_of(manifest: dict[str, Any]) -> dict[str, Axis]:
    """Lists the axes of a study; an axis ``arm`` of one point where none sets it."""
    swept = manifest.get("sweep", {}).get("axes", {})
    axes = {
        name: Axis(name, tuple(labels), _fields(name, swept.get(name)))
        for name, labels in manifest["axes"].items()
    }
    if not any(ARM in axis.fields for axis in axes.values()) and ARM not in axes:
        arms = dict.fromkeys(cell["config"]["arms"][0] for cell in manifest["cells"])
        axes = {ARM: Axis(ARM, tuple(arms), frozenset({ARM}))} | axes
    return {name: _spelled_once(axis, manifest) for name, axis in axes.items()}


def arm_axis(axes: dict[str, Axis]) -> Axis:
    """Finds the axis that sets the arm."""
    return next(axis for axis in axes.values() if ARM in axis.fields)


def input_axis(inputs: Iterable[str | None]) -> dict[str, Axis]:
    """Makes the axis of the inputs that are scored; none if there is one.

    It is no axis of the cells: each has rows of all of its inputs.

    Args:
      inputs: names of all inputs that rows are of, see `InputSpec.scored`.
    """
    labels = tuple(dict.fromkeys(name or NO_INPUT for name in inputs))
    return {INPUT: Axis(INPUT, labels, frozenset())} if len(labels) > 1 else {}


def point_of(cell: dict[str, Any], axes: dict[str, Axis]) -> dict[str, str]:
    """Says where a cell of the manifest stands, on every axis but that of inputs."""
    fixed = {ARM: cell["config"]["arms"][0]} if ARM in axes else {}
    point = {name: (fixed | cell["point"])[name] for name in axes if name != INPUT}
    return {name: axes[name].spellings.get(at, at) for name, at in point.items()}


def _spelled_once(axis: Axis, manifest: Mapping[str, Any]) -> Axis:
    """Brings arms whose numbers are written in two ways under one label, the first.

    Joined studies may write them differently. Two cells that would then stand at one
    point would be counted as repetitions of each other: such labels stay apart.
    """
    if axis.fields != {ARM}:
        return axis
    places: dict[str, set[tuple]] = {label: set() for label in axis.labels}
    for cell in manifest["cells"]:
        label = cell["point"].get(axis.name, cell["config"]["arms"][0])
        others = (item for item in cell["point"].items() if item[0] != axis.name)
        places[label].add(tuple(others))
    firsts: dict[str, str] = {}
    spellings = {}
    for label in axis.labels:
        first = firsts.setdefault(spell_numbers(label), label)
        if first != label and places[first].isdisjoint(places[label]):
            spellings[label] = first
            places[first] |= places[label]
    labels = tuple(label for label in axis.labels if label not in spellings)
    return axis._replace(labels=labels, spellings=MappingProxyType(spellings))


def _fields(name: str, points: Any) -> frozenset[str]:
    """Collects the fields that the points of an axis set; a list is of one field."""
    if isinstance(points, dict):
        return frozenset(field for fields in points.values() for field in fields)
    return frozenset({name})


class Arrangement(NamedTuple):
    """Which axes become what in a table.

    Attributes:
      rows, columns: axes whose points, combined, are the lines and the columns.
      slices: axes of which each combination of points gets a table of its own, so
        that nothing unlike is averaged.
      pooled: axes of repetitions, over which is averaged.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    slices: tuple[str, ...]
    pooled: tuple[str, ...]


def arrange(
    axes: dict[str, Axis],
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
) -> Arrangement:
    """Chooses what becomes of each axis.

    Args:
      axes: of the study.
      rows: axes whose points become lines; None for the one that sets the arm.
      columns: axes whose points become columns; None for the one with most points
        (two at least) that is neither a row nor an axis of repetitions.

    Raises:
      ValueError: for an axis that does not exist (with the nearest that does), or that
        is named twice.
    """
    for name in (*(rows or ()), *(columns or ())):
        if name not in axes:
            raise ValueError(
                f"the study has no axis {name!r}{nearest(name, axes)}; it has "
                f"{', '.join(axes)}"
            )
    if rows is None:
        arm = arm_axis(axes).name
        rows = [] if arm in (columns or ()) else [arm]
    if columns is None:
        free = [
            axis
            for axis in axes.values()
            if axis.name not in rows and not axis.repeats and len(axis.labels) > 1
        ]
        longest = max(free, key=lambda axis: len(axis.labels), default=None)
        columns = [longest.name] if longest else []
    chosen = [*rows, *columns]
    for name in chosen:
        if chosen.count(name) > 1:
            raise ValueError(f"axis {name!r} is named more than once: {chosen}")
    left = [axis for axis in axes.values() if axis.name not in chosen]
    return Arrangement(
        tuple(rows),
        tuple(columns),
        tuple(axis.name for axis in left if not axis.repeats),
        tuple(axis.name for axis in left if axis.repeats),
    )
