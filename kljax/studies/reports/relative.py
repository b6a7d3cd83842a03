"""RDLV, the relative data leakage value: how far an image is above an image prior."""

import numpy as np

from kljax.metrics import Interval
from kljax.studies.reports.estimates import UNKNOWN, by_image
from kljax.studies.reports.pools import Pool

PRIOR = "data_mean"  # the floor that an attacker has of images alone, without a label
SCORE = "ssim"
RESAMPLES = 2000
HEADING = f"RDLV to {PRIOR} [95 %]"


def relative_leakage(
    pool: Pool, *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Estimates the RDLV of a pool: (SSIM - SSIM of the prior) / SSIM of the prior.

    0: no better than the prior; 1: twice its SSIM; below 0: worse. There is no upper
    end but that of an SSIM of 1.

    *Differs from* Hatamizadeh et al. (IEEE TMI 2023): the ratio is of means over
    victims, for that of single victims has no bound where a prior's SSIM is near 0; and
    it is of the reconstruction that the attacker chose, where theirs is of the best by
    the truth.

    Args:
      pool: of images, with the rows of its floors.
      resamples, seed: of a bootstrap over groups. Resamples in which the prior's mean
        is not above 0 are left out.

    Returns:
      `kljax.metrics.Interval`; NaN throughout without such a floor, or where its mean
      SSIM is not above 0.
    """
    if PRIOR not in pool.floors or SCORE not in pool.values:
        return UNKNOWN
    scores = by_image(pool, pool.rows, SCORE)
    priors = by_image(pool, pool.floors[PRIOR], SCORE)
    group_of = by_image(pool, pool.rows, "group")
    both = [
        image
        for image in scores
        if np.isfinite([scores[image], priors.get(image, np.nan)]).all()
    ]
    if not both:
        return UNKNOWN
    groups = np.array([group_of[image] for image in both])
    names, members = np.unique(groups, return_inverse=True)
    sums = [
        np.bincount(members, weights=[of[image] for image in both])
        for of in (scores, priors)
    ]
    drawn = np.random.default_rng(seed).multinomial(
        len(names), np.full(len(names), 1 / len(names)), size=resamples
    )
    if sums[1].sum() <= 0:
        return UNKNOWN
    estimate = float(sums[0].sum() / sums[1].sum() - 1)
    totals = [drawn @ part for part in sums]
    fine = totals[1] > 0
    found = totals[0][fine] / totals[1][fine] - 1
    if len(found) < 2 or np.isclose(np.ptp(found), 0):
        return Interval(estimate, np.nan, np.nan, "none", len(names))
    low, high = map(float, np.quantile(found, (0.025, 0.975)))
    return Interval(estimate, low, high, "cluster_bootstrap", len(names))


def relative_words(relative: Interval) -> str:
    """Writes an RDLV with its interval; ``-`` where there is none."""
    if not np.isfinite(relative.estimate):
        return "-"
    mean, low, high = (f"{number:+.2f}" for number in relative[:3])
    return f"{mean} [{low}, {high}]" if np.isfinite(relative.low) else f"{mean} [?]"
