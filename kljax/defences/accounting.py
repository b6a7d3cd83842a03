"""Accounting: what the releases of a private defence give away, as epsilon.

What is assumed, and what kljax does:

- Neighbours are data sets of which one has nothing in the place of a unit of the other
  (`Mechanism`). Of two data sets that have different units in its place, the noise
  multiplier counts half.
- Nothing is gained by sampling. kljax's batches are those of shuffled epochs, of one
  size, and no coin decides who is in them: within an epoch an example is in one batch
  at most, and the whole epoch is one release for it. Neither is anything gained by the
  cohorts that are drawn for rounds. The order is independent of the data, so that the
  number holds for every order, also for one that everybody knows.
- Every upload is seen, each by itself: no release is hidden among others.
- Nothing else of the data is sent beside what is clipped and noised: no statistics of
  norm layers, no gradients of what is hidden, no losses by which a rule of aggregation
  weighs clients. Studies refuse all three.
- No client is left out of a round for turning non-finite: that it is would be seen, and
  of a client as the unit no noise covers it.
- An augmentation of one's own takes the examples of a batch one by one, and the deal of
  examples to clients, with their numbers, is public.
- Noise is drawn from a random key that nobody knows. That of a run follows from its
  seed: who has the seed takes the noise off.
- Numbers that only whoever runs an experiment has (losses, accuracies, tuned
  strengths) are outside of it.

T Gaussian mechanisms, each of which may follow from what the others gave, are together
exactly one, of a noise multiplier smaller by the root of T (Dong, Roth and Su,
"Gaussian Differential Privacy", 2022, corollary 2). Its epsilon is computed by
dp-accounting, by the exact formula of Balle and Wang (ICML 2018).
"""

import math
import sys

from kljax.defences.defence import Mechanism

EXTRA = "kljax[dp]"
# The noise multiplier below which a bound, at most a hundred-thousandth higher, takes
# the place of the exact epsilon: the search for that need not converge.
SMALLEST = 1e-6


def check_delta(delta: float) -> None:
    """Refuses a delta that is none.

    Raises:
      ValueError: for anything but a number above 0 and below 1.
    """
    number = isinstance(delta, (int, float)) and not isinstance(delta, bool)
    if not number or not 0 < delta < 1:
        raise ValueError(f"delta must be a number > 0 and < 1, got {delta!r}")


def require_accountant() -> None:
    """Refuses to account without what accounts.

    Raises:
      ImportError: if dp-accounting is not installed.
    """
    try:
        import dp_accounting  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "an arm with differential privacy is accounted for by dp-accounting, which "
            f"is not installed: pip install '{EXTRA}'"
        ) from error


def epsilon(mechanism: Mechanism | None, releases: int, delta: float) -> float | None:
    """Computes the epsilon of some releases, at a delta.

    Args:
      mechanism: of one release, its noise multiplier a number.
      releases: in how many one unit may be.
      delta: > 0 and < 1.

    Returns:
      The least epsilon, 0 or more; None where nothing is guaranteed: without a
      mechanism, or without noise. Under noise of less than `SMALLEST` a bound of it,
      ``m^2 / 2 + m sqrt(2 log(1 / delta))`` with m the bound over the noise.

    Raises:
      ValueError: for a delta that is none, and for fewer than 0 releases.
      ImportError: see `require_accountant`.
    """
    check_delta(delta)
    if releases < 0:
        raise ValueError(f"releases must be >= 0, got {releases!r}")
    if mechanism is None or not mechanism.noise_multiplier > 0:
        return None
    if releases == 0:
        return 0.0
    require_accountant()
    from dp_accounting import get_epsilon_gaussian

    single = float(mechanism.noise_multiplier) / math.sqrt(releases)
    if single < SMALLEST:
        mean = 1 / max(single, sys.float_info.min)
        return mean * mean / 2 + mean * math.sqrt(-2 * math.log(delta))
    return float(get_epsilon_gaussian(single, delta))
