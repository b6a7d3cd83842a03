"""Columns of a study beside kljax's: of metrics and of an attack of one's own."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from kljax.attacks.presets import find_preset
from kljax.core.inputs import InputSpec
from kljax.core.randomness import fixed_rng
from kljax.core.registry import nearest
from kljax.metrics import COLUMNS, Column, by_name, check_metric, find_metrics
from kljax.metrics.kinds import find_kind
from kljax.studies.config import LeakConfig


def own_columns(config: LeakConfig) -> dict[str, Column]:
    """Lists the columns that the metrics and the attack of a study bring along.

    Raises:
      ValueError: for what does not exist, and for two columns of one name.
    """
    of_metrics = [own.column for own in find_metrics(config.metrics)]
    found = by_name((*COLUMNS.values(), *_of_attack(config), *of_metrics))
    return {name: at for name, at in found.items() if name not in COLUMNS}


def columns_of(config: LeakConfig) -> dict[str, Column]:
    """Lists all columns of the rows of a study.

    Raises:
      ValueError: see `own_columns`.
    """
    return COLUMNS | own_columns(config)


def check_own(config: LeakConfig, inputs: InputSpec) -> None:
    """Checks what scores and columns a study brings along, before any work.

    Args:
      config: of the study.
      inputs: what metrics compare; of several inputs, they do the primary one.

    Raises:
      ValueError: for inputs of a kind that has no scores, and see `own_columns` and
        `kljax.metrics.check_metric`.
    """
    own_columns(config)
    for spec in inputs.scored.values():
        find_kind(spec)
    if config.metrics:
        pair = np.asarray(inputs.primary_of(inputs.draw(fixed_rng("metrics"), 2)))
        for own in find_metrics(config.metrics):
            check_metric(own, *pair)


def check_numbers(config: LeakConfig, numbers: Mapping[str, Any]) -> None:
    """Checks the numbers that an attack reports beside its images.

    Raises:
      ValueError: for one that is no column of an attack.
    """
    reported = {column.name for column in COLUMNS.values() if column.reported}
    reported |= {column.name for column in _of_attack(config)}
    for name, value in numbers.items():
        if name not in reported:
            raise ValueError(
                f"attack {config.attack!r} reports {name!r}, which is no column of "
                f"attacks{nearest(name, reported)}: give its Preset one, as columns="
                f"(kljax.metrics.Column(name={name!r}, rows='attack', ...),)"
            )
        if getattr(value, "shape", ()) != ():
            raise ValueError(
                f"attack {config.attack!r} reports {name!r} of shape {value.shape}; it "
                "must be one number, and anything else belongs into info"
            )


def _of_attack(config: LeakConfig) -> tuple[Column, ...]:
    columns = find_preset(config.attack).columns
    for column in columns:
        if column.rows == "all" or column.option or column.dtype == "string":
            raise ValueError(
                f"attack {config.attack!r}: its column {column.name!r} must be of "
                "numbers, of no option, and have rows='attack' or 'search'"
            )
    return columns
