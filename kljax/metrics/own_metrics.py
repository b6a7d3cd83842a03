"""Metrics of a user's own: one function, and the row of its column.

>>> import numpy as np
>>> @metric("how much brighter the guess is", words="brightness", leaks=0)
... def brightness(guess, truth):
...     return guess.mean() - truth.mean()
>>> brightness.column.name, round(float(brightness(np.ones(3), np.zeros(3))), 1)
('brightness', 1.0)
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike

from kljax.core.registry import check_callable, resolve
from kljax.metrics.column_table import COLUMNS, OUTCOME_RATES
from kljax.metrics.columns import Column, by_name

PER_CALL = 64  # inputs in one call of a compiled metric
TAKEN = {**COLUMNS, **OUTCOME_RATES, "cell": None}  # names that mean something already


class Metric(NamedTuple):
    """A function of two images, and its column.

    Attributes:
      column: what it computes.
      function: ``(guess, truth) -> number``, both [H, W, C] in [0, 1].
      compiled: whether it is written in JAX: it is then mapped over images and
        compiled. Otherwise it is called image by image, with NumPy arrays.
    """

    column: Column
    function: Callable[[Any, Any], Any]
    compiled: bool

    def __call__(self, guess: ArrayLike, truth: ArrayLike) -> Any:
        return self.function(guess, truth)


def metric(
    meaning: str, *, compiled: bool = True, **column: Any
) -> Callable[[Callable[[Any, Any], Any]], Metric]:
    """Makes a metric of the function below, to be named as ``package.module:function``.

    Args:
      meaning: of its column, in words.
      compiled: see `Metric`.
      column: whatever else is to be said of the column, see `Column`. It is named like
        the function, tabled everywhere, with three digits after the point, and known
        to the scorer alone, unless another is said.

    Raises:
      ValueError: see `Column`.
    """

    def make(function: Callable[[Any, Any], Any]) -> Metric:
        usual = {"name": function.__name__, "form": ".3f", "shown": "terminal"}
        row = Column(meaning=meaning, **usual | column)
        return Metric(row, function, compiled)

    return make


def find_metrics(names: Iterable[str]) -> tuple[Metric, ...]:
    """Finds metrics by name, each ``package.module:function``.

    Raises:
      ValueError: for what does not exist or is no `Metric`, and for a column whose name
        means something already.
    """
    found = []
    for name in names:
        own = check_callable("metric", name, resolve("metric", name, {}))
        if not isinstance(own, Metric):
            raise ValueError(
                f"metric {name!r} has no column: write @kljax.metrics.metric('what it "
                "means') above it"
            )
        if own.column.name in TAKEN:
            raise ValueError(
                f"metric {name!r}: rows have a column {own.column.name!r} already; "
                "give another name="
            )
        if (
            own.column.dtype == "string"
            or own.column.option
            or own.column.rows != "all"
        ):
            raise ValueError(
                f"metric {name!r}: its column must be of numbers, of all rows and of "
                "no option"
            )
        found.append(own)
    by_name(own.column for own in found)  # two of one name
    return tuple(found)


def check_metric(own: Metric, guess: np.ndarray, truth: np.ndarray) -> None:
    """Tries a metric on two inputs, before anything depends on it.

    Raises:
      ValueError: if it raises, or does not give one number.
    """
    name, shape = own.column.name, np.shape(truth)
    guess, truth = _published(guess), _published(truth)
    try:
        if own.compiled:
            given = jax.eval_shape(own.function, guess, truth).shape
        else:
            given = np.shape(own.function(guess, truth))
    except Exception as error:  # whatever a user's function raises
        first = str(error).partition("\n")[0]
        hint = (
            "" if not own.compiled else "; not written in JAX, it needs compiled=False"
        )
        raise ValueError(
            f"metric {name!r} cannot score inputs of shape {shape} "
            f"({type(error).__name__}: {first}){hint}"
        ) from error
    if given != ():
        raise ValueError(
            f"metric {name!r} gives an array of shape {given} for one input; it must "
            "give one number"
        )


def score_pairs(own: Metric, guesses: np.ndarray, truths: np.ndarray) -> np.ndarray:
    """Scores guesses [N, ...] against truths, as attackers would publish them.

    An image is clipped to [0, 1]. A guess that is not finite throughout has no score:
    clipped, or by a maximum that passes NaN over, its break would be hidden.

    Returns:
      [N] float64; NaN for such a guess, and where the metric says so.
    """
    sound = np.isfinite(guesses.reshape(len(guesses), -1)).all(axis=1)
    found = _scored(own, _published(guesses), truths)
    return np.where(sound, found, np.nan)


def _scored(own: Metric, guesses: np.ndarray, truths: np.ndarray) -> np.ndarray:
    if own.compiled:
        calls = []
        for start in range(0, len(guesses), PER_CALL):
            # Filled up with the last pair: one shape, one compilation.
            places = np.minimum(np.arange(start, start + PER_CALL), len(guesses) - 1)
            calls.append(_mapped(own.function)(guesses[places], truths[places]))
        return np.concatenate(calls).astype(np.float64)[: len(guesses)]
    pairs = zip(guesses, truths, strict=True)
    return np.array([own.function(g, t) for g, t in pairs], np.float64)


def _published(guesses: np.ndarray) -> np.ndarray:
    if not np.issubdtype(guesses.dtype, np.floating):
        return guesses
    finite = np.where(np.isfinite(guesses), guesses, np.nan)
    return np.clip(finite, 0, 1).astype(np.float32)


@functools.lru_cache(maxsize=32)
def _mapped(function: Callable) -> Callable[[ArrayLike, ArrayLike], jax.Array]:
    return jax.jit(jax.vmap(function))
