"""Values: what of a row can be tabled, how it is written, and which end leaks more."""

from typing import NamedTuple

import numpy as np
import pyarrow

from kljax import metrics
from kljax.core.registry import nearest


class Value(NamedTuple):
    """One number per image.

    Attributes:
      words: what it is called in tables.
      form: how it is written, for `format`.
      leaks: 1 if a higher number leaks more, -1 if a lower one does, 0 if it does not
        tell.
      rate: whether the number of every victim is 0 or 1, so that the mean is the rate
        of victims who have it.
    """

    words: str
    form: str = ".3f"
    leaks: int = 1
    rate: bool = False

    @property
    def is_share(self) -> bool:
        """Tells whether its mean is a share: of victims, or of their examples."""
        return self.form.endswith("%")


# From this version of the rows on each is of one image, whose label is right or not.
LABEL_OF_AN_IMAGE = 4

VALUES: dict[str, Value] = {
    "ssim": Value("SSIM"),
    "success": Value("SSIM >= .6", ".0%", rate=True),
    "recovered": Value("recovered", ".0%", rate=True),
    "recovered_affine": Value("recovered up to contrast", ".0%", rate=True),
    "unsolved": Value("unsolved", ".0%", 0, rate=True),
    "ambiguous": Value("ambiguous", ".0%", 0, rate=True),
    "diverged": Value("diverged", ".0%", 0, rate=True),
    "psnr": Value("PSNR dB", ".1f"),
    "mse": Value("squared error", ".4f", -1),
    "ssim_minmax": Value("SSIM min-max"),
    "ssim_affine_oracle": Value("SSIM affine oracle"),
    "psnr_affine_oracle": Value("PSNR affine oracle dB", ".1f"),
    "mse_affine_oracle": Value("squared error affine oracle", ".4f", -1),
    "lpips_alex": Value("LPIPS Alex", leaks=-1),
    "lpips_vgg": Value("LPIPS VGG", leaks=-1),
    "rmse255": Value("RMSE of 255", ".1f", -1),
    "psnr_fedkl": Value("FedKL's PSNR", ".1f"),
    "label_accuracy": Value("label", ".0%"),
    "label_multiset_accuracy": Value("labels in any order", ".0%"),
    "matching_loss": Value("matching loss", ".1e", 0),
    "matching_loss_at_truth": Value("matching loss at truth", ".1e", 0),
    "live_channels": Value("live channels", ".1f", 0),
    "feature_error": Value("error of the classifier's input", ".1e", -1),
    "bins_read": Value("bins read", ".1f"),
}
assert set(metrics.OUTCOMES) <= set(VALUES)


def check_value(name: str) -> None:
    """Refuses what is no value.

    Raises:
      ValueError: with the nearest one.
    """
    if name not in VALUES:
        raise ValueError(
            f"unknown value {name!r}{nearest(name, VALUES)}; known: {', '.join(VALUES)}"
        )


def is_rate(rows: pyarrow.Table, name: str) -> bool:
    """Tells whether these rows have 0 or 1 for a value, by what its column means."""
    if name == "label_accuracy":
        versions = rows["schema_version"].unique().to_pylist()
        return min(versions, default=0) >= LABEL_OF_AN_IMAGE
    return VALUES[name].rate


def numbers(rows: pyarrow.Table, name: str) -> np.ndarray:
    """Reads a value of all rows, float64 [N]; NaN where there is none."""
    if name not in metrics.OUTCOMES:
        column = rows[name].cast(pyarrow.float64())
        return column.to_numpy(zero_copy_only=False)
    found = rows["outcome"].to_pylist()
    return np.array([np.nan if o is None else float(o == name) for o in found])


def written(name: str, number: float | None) -> str:
    """Writes a value; ``-`` where there is none."""
    if number is None or not np.isfinite(number):
        return "-"
    return format(number, VALUES[name].form)


def known(number: float | None) -> float | None:
    """Gives a number, or None for what is no finite one, as CSV and JSON want it."""
    return float(number) if number is not None and np.isfinite(number) else None
