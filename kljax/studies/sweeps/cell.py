"""Cells: studies of one arm and one seed, their ids, and which compile together."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from kljax.attacks.presets import find_preset
from kljax.core.registry import nearest
from kljax.defences.arms import skeleton_of
from kljax.studies.builder.attack_options import without_dials
from kljax.studies.builder.denoiser import parse_denoise
from kljax.studies.config import SPEED_OPTIONS, LeakConfig
from kljax.studies.config.leak import named_limit, weights_limit
from kljax.studies.sweeps.fields import DEFAULTS, in_floats

DIGITS = 12  # of an id
# What does not change a victim's result. The same data may lie elsewhere, and more or
# less may be kept.
NO_RESULTS = (*SPEED_OPTIONS, "data_dir", "snapshots")
# What compiled functions take as data, or what is split before they are called.
NO_PROGRAM = ("layout", "seed", "victims", "delta")


class Cell(NamedTuple):
    """One study of a sweep.

    Attributes:
      id: 12 hexadecimal digits, of what changes its results.
      point: axis -> name of the point at which it stands.
      config: all that is needed to repeat it; one arm.
    """

    id: str
    point: dict[str, str]
    config: LeakConfig


def make_cell(point: Mapping[str, str], config: LeakConfig) -> Cell:
    """Makes a cell, with the id that belongs to its configuration.

    Raises:
      ValueError: if `config` has not exactly one arm.
    """
    if len(config.arms) != 1:
        raise ValueError(f"a cell has one arm, got {config.arms}")
    text = _canonical(identity(config))
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Cell(digest[:DIGITS], dict(point), config)


def identity(config: LeakConfig) -> dict[str, Any]:
    """Lists what changes the results of a configuration, ready for JSON.

    Fields at their default are left out, so that a field that is added to the
    configuration later leaves the ids of older cells alone. A default that is changed
    gives old ids another meaning; `kljax.studies.sweeps.difference` finds that.
    Of `init` the limit that the model's name says is left out; one that follows from
    the data is listed.
    """
    fields = {}
    for field in dataclasses.fields(LeakConfig):
        name, value = field.name, getattr(config, field.name)
        if name in NO_RESULTS:
            continue
        if name == "init" and not (value is None and config.from_run):
            # Said or not, the weights are the same. None where only data tell the
            # limit: then no id says it.
            value = weights_limit(config.model, config.data) if value is None else value
            if value != named_limit(config.model):
                fields[name] = value if value is None else _plain(name, value)
            continue
        # The number of default arms may change; that of a cell is always one.
        if name == "arms" or value != getattr(DEFAULTS, name):
            fields[name] = _plain(name, value)
    return fields


def signature(cell: Cell) -> str:
    """Writes what the compiled program of a cell depends on.

    Cells of one signature differ in nothing but the seed, the number of victims, the
    strengths of their defences and of the denoiser, the step size of the optimiser and
    the attack's dials (`kljax.attacks.presets.Preset`), all of which a program can take
    as data. Whether there is a step size, or a dial is set, is part of the program.
    """
    return program_of(cell.config)


def program_of(config: LeakConfig) -> str:
    """Writes what the compiled programs of a study depend on, see `signature`."""
    program = {
        field.name: _plain(field.name, getattr(config, field.name))
        for field in dataclasses.fields(LeakConfig)
        if field.name not in NO_PROGRAM
    }
    program["arms"] = [_without_strengths(arm) for arm in config.arms]
    if config.attack_options:
        preset = find_preset(config.attack)
        program["attack_options"] = without_dials(config.attack_options, preset)
    if config.denoise is not None:
        program["denoise"] = parse_denoise(config.denoise).program
    if "step_size" in program:
        program["step_size"] = program["step_size"] is not None
    return _canonical(program)


def groups(cells: Iterable[Cell]) -> dict[str, tuple[Cell, ...]]:
    """Puts cells of one signature together, in the order in which they come."""
    groups_of_cells: dict[str, list[Cell]] = {}
    for cell in cells:
        groups_of_cells.setdefault(signature(cell), []).append(cell)
    return {name: tuple(members) for name, members in groups_of_cells.items()}


def cell_to_json(cell: Cell) -> dict[str, Any]:
    """Writes a cell for JSON; every field but the layout, whatever its default."""
    config = {
        field.name: getattr(cell.config, field.name)
        for field in dataclasses.fields(LeakConfig)
        if field.name != "layout"
    }
    return {"id": cell.id, "point": dict(cell.point), "config": config}


def cell_from_json(entry: Mapping[str, Any]) -> Cell:
    """Reads a cell; its id is the one it was given then.

    Raises:
      ValueError: for a field that configurations do not have any more, and what
        `kljax.LeakConfig` raises.
    """
    known = [field.name for field in dataclasses.fields(LeakConfig)]
    for name in entry["config"]:
        if name not in known:
            raise ValueError(
                f"cell {entry['id']}: this kljax has no field {name!r}"
                f"{nearest(name, known)}"
            )
    fields = entry["config"] | {"layout": DEFAULTS.layout}
    config = msgspec.convert(fields, LeakConfig)
    return Cell(entry["id"], dict(entry["point"]), config)


def name_of(point: Mapping[str, str]) -> str:
    """Names a cell by its point, for people."""
    named = ", ".join(f"{axis}={at}" for axis, at in point.items())
    return f"cell {named}" if named else "the only cell"


def _plain(name: str, value: Any) -> Any:
    if name in ("threat", "attack_options"):  # in no order
        return sorted(value)
    return list(value) if isinstance(value, tuple) else in_floats(name, value)


def _without_strengths(arm: str) -> str:
    combination, slash, strategy = arm.partition("/")
    return skeleton_of(combination) + slash + strategy


def _canonical(content: Any) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
