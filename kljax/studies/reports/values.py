"""Values: the columns of which means are tabled, read out of rows."""

import dataclasses

import numpy as np
import pandas

from kljax import metrics
from kljax.metrics import OUTCOME_RATES, Column
from kljax.studies.reports.kinds import kinds_of, success_words
from kljax.studies.store import Study

# From this version of the rows on each is of one image, whose label is right or not.
LABEL_OF_AN_IMAGE = 4


def values_of(study: Study) -> dict[str, Column]:
    """Finds the columns of a study, and the rates of outcomes, that can be tabled.

    Success is called what it is of the kinds of inputs that the study has.
    """
    columns = study.columns | OUTCOME_RATES
    words = success_words(kinds_of(study))
    columns["success"] = dataclasses.replace(columns["success"], words=words)
    return {name: column for name, column in columns.items() if column.is_value}


def is_rate(rows: pandas.DataFrame, value: Column) -> bool:
    """Tells whether these rows have 0 or 1 for a value, by what its column means."""
    if value.name == "label_accuracy":
        return bool((rows["schema_version"] >= LABEL_OF_AN_IMAGE).all())
    return value.rate


def numbers(rows: pandas.DataFrame, name: str) -> np.ndarray:
    """Reads a value of all rows, float64 [N]; NaN where there is none."""
    if name not in metrics.OUTCOMES:
        return rows[name].to_numpy(float, na_value=np.nan)
    outcomes = rows["outcome"]
    return np.where(outcomes.isna(), np.nan, outcomes == name)


def known(number: float | None) -> float | None:
    """Gives a number, or None for what is no finite one, as CSV and JSON want it."""
    return float(number) if number is not None and np.isfinite(number) else None


def capitalised(words: str) -> str:
    """Writes the first letter large, and leaves the others."""
    return words[:1].upper() + words[1:]
