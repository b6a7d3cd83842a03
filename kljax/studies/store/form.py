"""The form of a manifest: what ``manifest.json`` holds."""

from collections.abc import Iterator
from typing import Annotated, TypedDict

import msgspec

from kljax.studies.sweeps.fields import FIELDS

Value = bool | int | float | str | list[str]
# Fields that configurations do not have any more, or not yet, are of any type.
Config = TypedDict(
    "Config", {n: h for n, h in FIELDS.items() if n != "arm"}, total=False
)


class CellConfig(Config):
    """The configuration of a cell, of whatever version."""

    arms: tuple[str]
    victims: Annotated[int, msgspec.Meta(ge=1)]


class Entry(TypedDict):
    """A cell, as `sweeps.cell_to_json` writes it, and when it was added."""

    id: str
    point: dict[str, str]  # axis -> name of the point
    config: CellConfig
    generation: Annotated[int, msgspec.Meta(ge=0)]


class Tables(TypedDict):
    """A sweep, as `kljax.studies.sweeps.sweep_to_dict` writes it."""

    fixed: dict[str, Value]
    axes: dict[str, dict[str, dict[str, Value]]]
    exclude: list[dict[str, list[str]]]
    options: dict[str, bool]


class Versioned(TypedDict):
    """What tells whether the rest is understood."""

    schema_version: int


class Manifest(TypedDict):
    """What ``manifest.json`` holds, besides what made it."""

    schema_version: int
    job: str
    name: str
    sweep: Tables
    axes: dict[str, list[str]]
    excluded: int
    illegal: int
    part: Annotated[int, msgspec.Meta(ge=1)]
    cells: list[Entry]


def contradictions(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Finds what types do not: (place, what is wrong there)."""
    axes, points = manifest["axes"], manifest["sweep"]["axes"]
    if axes != {axis: list(labels) for axis, labels in points.items()}:
        yield "axes", "they are not those of the sweep"
    seen = set()
    for number, cell in enumerate(manifest["cells"]):
        point, place = cell["point"], f"cells[{number}]"
        if point.keys() != axes.keys() or any(point[a] not in axes[a] for a in axes):
            yield f"{place}.point", f"{point} is no point of the axes"
        if cell["id"] in seen:
            yield f"{place}.id", f"cell {cell['id']} is there twice"
        seen.add(cell["id"])
