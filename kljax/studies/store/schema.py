"""The columns of a part: which cell a row is of, where that stands, and its scores."""

from collections.abc import Iterable

import pyarrow

from kljax.studies.scoring import COLUMNS

AXIS = "axis_"  # before the name of an axis in the name of its column

# column of kljax.studies.scoring.COLUMNS -> type; null where a column does not apply
TYPES = {
    "schema_version": pyarrow.int32(),
    "arm": pyarrow.string(),
    "lock_strategy": pyarrow.string(),
    "label_strategy": pyarrow.string(),
    "model": pyarrow.string(),
    "data": pyarrow.string(),
    "victim": pyarrow.int64(),
    "group": pyarrow.int64(),
    "label": pyarrow.int64(),
    "label_guess": pyarrow.int64(),
    "label_accuracy": pyarrow.float64(),
    "weights": pyarrow.string(),
    "attack": pyarrow.string(),
    "optimiser": pyarrow.string(),
    "step_size": pyarrow.float64(),
    "restarts": pyarrow.int64(),
    "evaluations": pyarrow.int64(),
    "seed": pyarrow.int64(),
    "matmul_precision": pyarrow.string(),
    "device": pyarrow.string(),
    "mse": pyarrow.float64(),
    "psnr": pyarrow.float64(),
    "ssim": pyarrow.float64(),
    "ssim_minmax": pyarrow.float64(),
    "ssim_affine_oracle": pyarrow.float64(),
    "psnr_affine_oracle": pyarrow.float64(),
    "lpips_alex": pyarrow.float64(),
    "lpips_vgg": pyarrow.float64(),
    "rmse255": pyarrow.float64(),
    "psnr_fedkl": pyarrow.float64(),
    "success": pyarrow.bool_(),
    "floor_mse": pyarrow.float64(),
    "matching_loss": pyarrow.float64(),
    "matching_loss_at_truth": pyarrow.float64(),
    "matching_loss_floor": pyarrow.float64(),
    "outcome": pyarrow.string(),
    "live_channels": pyarrow.int64(),
    "label_multiset_accuracy": pyarrow.float64(),
    "feature_error": pyarrow.float64(),
    "bins_read": pyarrow.int64(),
    "replay_is_exact": pyarrow.bool_(),
    "upload": pyarrow.int64(),
    "example": pyarrow.int64(),
    "mse_affine_oracle": pyarrow.float64(),
    "floor_mse_affine": pyarrow.float64(),
    "label_rule_holds": pyarrow.bool_(),
}


def part_schema(axes: Iterable[str]) -> pyarrow.Schema:
    """Makes the schema of a part of a study with these axes.

    First ``cell``, then one string column ``axis_NAME`` per axis, then
    `kljax.studies.scoring.COLUMNS`. NaN and infinities are values, null is no value.
    """
    named = [("cell", pyarrow.string())]
    named += [(AXIS + name, pyarrow.string()) for name in axes]
    named += [(name, TYPES[name]) for name in COLUMNS]
    return pyarrow.schema(named)
