"""Metrics: how near a guess is to the truth, and what that is worth.

One image or one victim at a time; `jax.vmap` the functions of `image` over victims.
Images are [H, W, C], floating, in [0, 1].
"""

from kljax.metrics.column_table import COLUMNS, OUTCOME_RATES, VALUES
from kljax.metrics.columns import (
    PLACES,
    Column,
    by_name,
    column_from_dict,
    column_to_dict,
    find_value,
    guide,
    names_today,
)
from kljax.metrics.floors import (
    FLOORS,
    ORACLE_FLOORS,
    Reference,
    best_floor_mse,
    floor_images,
)
from kljax.metrics.image import (
    affine_fit,
    mse,
    psnr,
    psnr_fedkl,
    relative_leakage,
    rmse255,
    score,
    ssim,
    stretch,
)
from kljax.metrics.intervals import Interval, cluster_bootstrap, interval, wilson
from kljax.metrics.lpips import LPIPS_CHANNELS, lpips_available, lpips_distances
from kljax.metrics.matching import assign, choose, multiset_accuracy
from kljax.metrics.outcomes import (
    OUTCOMES,
    SUCCESS_FLOOR_SHARE,
    SUCCESS_SSIM,
    loss_floor,
    outcome,
    success,
)
from kljax.metrics.own_metrics import (
    Metric,
    check_metric,
    find_metrics,
    metric,
    score_pairs,
)
from kljax.metrics.run_columns import RUN_COLUMNS

__all__ = (
    # One guess against one truth
    "mse",
    "psnr",
    "ssim",
    "rmse255",
    "psnr_fedkl",
    "relative_leakage",
    "stretch",
    "affine_fit",
    "score",
    "lpips_distances",
    "lpips_available",
    "LPIPS_CHANNELS",
    # A batch's guesses against its truths
    "assign",
    "choose",
    "multiset_accuracy",
    # What is reached without the gradient
    "FLOORS",
    "ORACLE_FLOORS",
    "Reference",
    "floor_images",
    "best_floor_mse",
    # What one attack on one victim showed
    "OUTCOMES",
    "SUCCESS_SSIM",
    "SUCCESS_FLOOR_SHARE",
    "success",
    "loss_floor",
    "outcome",
    # Metrics of your own
    "Metric",
    "metric",
    "find_metrics",
    "check_metric",
    "score_pairs",
    # What is in the rows
    "Column",
    "COLUMNS",
    "OUTCOME_RATES",
    "RUN_COLUMNS",
    "VALUES",
    "find_value",
    "PLACES",
    "by_name",
    "names_today",
    "column_to_dict",
    "column_from_dict",
    "guide",
    # How sure a rate or mean over victims is
    "Interval",
    "wilson",
    "cluster_bootstrap",
    "interval",
)
