"""Estimates: the mean of a pool, how sure it is, and the floor beside it."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas

from kljax import metrics
from kljax.metrics import Column, Interval
from kljax.studies.reports.pools import Pool, with_several
from kljax.studies.reports.values import is_rate, numbers

NOTHING = float("nan")
UNKNOWN = Interval(NOTHING, NOTHING, NOTHING, "none", 0)


class Image(NamedTuple):
    """What a row is of; rows are paired if they agree in all of it but the cell."""

    cell: str
    victim: int
    of_upload: bool  # the means over an upload, see `with_several`


class Beside(NamedTuple):
    """The floor that leaks most, by its mean over the same victims.

    Attributes:
      name: of the floor.
      mean: of the same value.
      excess: how much more the attack leaks than the floor on the same victims; below
        0 it leaks less. The sign is turned for values of which less leaks more.
    """

    name: str
    mean: float
    excess: Interval


class Estimate(NamedTuple):
    """The mean of a value over a pool.

    Attributes:
      value: what is averaged.
      interval: mean with its 95 % interval, see `kljax.metrics.interval`; NaN
        throughout if there is nothing to average.
      n: victims behind it.
      left_out: victims whose value is not finite, or that have none.
      deviation: sample standard deviation over victims; NaN for fewer than two.
      spread: sample standard deviation of the means of repetitions; NaN for fewer
        than two.
      repetitions: that have a mean.
      floor: None where floors have no such value, or it does not tell what leaks.
    """

    value: Column
    interval: Interval
    n: int
    left_out: int
    deviation: float
    spread: float
    repetitions: int
    floor: Beside | None

    @property
    def mean(self) -> float:
        return self.interval.estimate

    def text(self) -> str:
        """Writes mean and interval: ``0.557 [0.490, 0.620]``."""
        if not self.n:
            return "-"
        return with_interval(self.value, self.interval)

    def floor_text(self) -> str:
        """Writes the floor: ``0.596 (class_mean)``."""
        if self.floor is None:
            return "-"
        return f"{self.value.written(self.floor.mean)} ({self.floor.name})"

    def spread_text(self) -> str:
        """Writes the spread over repetitions: ``± 0.012 (3)``."""
        if not np.isfinite(self.spread):
            return "-"
        return f"± {signed_less(self.value, self.spread)} ({self.repetitions})"


def estimate(pool: Pool, name: str) -> Estimate:
    """Estimates the mean of a value over all victims of a pool."""
    value, values = pool.values[name], numbers(pool.rows, name)
    finite = np.isfinite(values)
    finite_ones = values[finite]
    groups = pool.rows["group"].to_numpy()[finite]
    cells = pool.rows["cell"].to_numpy()[finite]
    means = [finite_ones[cells == cell].mean() for cell in dict.fromkeys(cells)]
    return Estimate(
        value,
        metrics.interval(finite_ones, groups, rate=is_rate(pool.rows, value))
        if len(finite_ones)
        else UNKNOWN,
        len(finite_ones),
        int((~finite).sum()),
        sample_deviation(finite_ones),
        sample_deviation(means),
        len(means),
        _floor(pool, value),
    )


def sample_deviation(values) -> float:
    """Computes the standard deviation with n - 1; NaN for fewer than two values."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else NOTHING


def mean_difference(
    value: Column, differences: np.ndarray, groups: np.ndarray
) -> Interval:
    """Estimates the mean of paired differences by bootstrap over groups.

    Differences that are not finite are left out. Equal differences show no spread, and
    a bootstrap of them would claim certainty. Of a rate, differences which are all 1
    (or -1) have Wilson's interval for their share, each group counted once; if all are
    0, their mean is within what Wilson allows for none, on either side. Of other
    values, and for one group, low and high are NaN; so is the mean of nothing.
    """
    finite = np.isfinite(differences)
    differences, groups = differences[finite], groups[finite]
    if not len(differences):
        return UNKNOWN
    of_a_rate = value.rate and np.all(np.isin(differences, (-1, 0, 1)))
    if not of_a_rate or np.ptp(differences) > 0:
        return metrics.cluster_bootstrap(differences, groups)
    count, mean = len(np.unique(groups)), float(differences[0])
    bounds = metrics.wilson(int(abs(mean)) * count, count)
    low, high = (bounds.low, bounds.high) if mean else (-bounds.high, bounds.high)
    if mean < 0:
        low, high = -high, -low
    return Interval(mean, low, high, "wilson_on_groups", count)


def with_interval(
    value: Column,
    interval: Interval,
    write: Callable[[Column, float], str] = Column.written,
) -> str:
    """Writes a mean and its interval, which may be unknown."""
    mean = write(value, interval.estimate)
    if not np.isfinite(interval.low):
        return f"{mean} [?]"
    return f"{mean} [{write(value, interval.low)}, {write(value, interval.high)}]"


def signed(value: Column, number: float) -> str:
    """Writes a difference: in points (of a hundred) where the value is a share."""
    if value.is_share:
        return f"{100 * number:+.0f}"
    return format(number, f"+{value.form}")


def signed_less(value: Column, number: float) -> str:
    """Writes a width: in points (of a hundred) where the value is a share."""
    if value.is_share:
        return f"{100 * number:.0f} points"
    return value.written(number)


def _floor(pool: Pool, value: Column) -> Beside | None:
    leaks = value.leaks
    if not leaks:
        return None
    means = {name: _finite_mean(rows, value.name) for name, rows in pool.floors.items()}
    means = {name: mean for name, mean in means.items() if np.isfinite(mean)}
    if not means:
        return None
    best = max(means, key=lambda name: leaks * means[name])
    return Beside(best, means[best], _excess(pool, best, value))


def _finite_mean(rows: pandas.DataFrame, name: str) -> float:
    values = numbers(rows, name)
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else NOTHING


def _excess(pool: Pool, floor: str, value: Column) -> Interval:
    of_floor = by_image(pool, pool.floors[floor], value.name)
    of_attack = by_image(pool, pool.rows, value.name)
    group_of = by_image(pool, pool.rows, "group")
    both = [victim for victim in of_attack if victim in of_floor]
    differences = np.array([of_attack[v] - of_floor[v] for v in both])
    groups = np.array([group_of[v] for v in both])
    return mean_difference(value, value.leaks * differences, groups)


def by_image(pool: Pool, rows: pandas.DataFrame, name: str) -> dict[Image, float]:
    """Reads a column of some of a pool's rows, by what each is of."""
    several = with_several(pool.cells)
    of_upload = rows["example"].isna() & rows["cell"].isin(several)
    images = map(Image, rows["cell"], rows["victim"], of_upload)
    return dict(zip(images, numbers(rows, name).tolist(), strict=True))
