"""What the paper prints of leakage, and the same figures of a study's rows.

FedKL's figures are its own: "MSE" is the root of the squared error on 0..255
(`kljax.metrics.rmse255`), and "PSNR" puts that root where the squared error belongs
(`psnr_fedkl`). They are comparable with nothing but themselves.
"""

import numpy as np
from tabulate import tabulate

# Ren, Deng, Xie, "Gradient Leakage Defense with Key-Lock Module for Federated
# Learning", Table 6, LeNet: (attack, data, lock) -> RMSE, "PSNR", SSIM.
TABLE_6 = {
    ("dlg", "MNIST", False): (49.97, 32.71, 0.724),
    ("dlg", "MNIST", True): (140.87, 26.64, -0.003),
    ("dlg", "CIFAR-10", False): (29.62, 41.14, 0.724),
    ("dlg", "CIFAR-10", True): (98.76, 28.20, 0.006),
    ("dlg", "CIFAR-100", False): (25.30, 39.85, 0.859),
    ("dlg", "CIFAR-100", True): (101.44, 28.09, 0.009),
    ("grnn", "MNIST", False): (0.35, 52.78, 1.000),
    ("grnn", "MNIST", True): (103.46, 28.00, 0.108),
    ("grnn", "CIFAR-10", False): (0.78, 49.29, 1.000),
    ("grnn", "CIFAR-10", True): (92.12, 28.52, 0.101),
    ("grnn", "CIFAR-100", False): (1.05, 48.65, 0.999),
    ("grnn", "CIFAR-100", True): (100.82, 28.18, 0.085),
}
FIGURES = ("rmse255", "psnr_fedkl", "ssim")
HEADER = ("attack", "data", "arm", "victims", "RMSE", '"PSNR"', "SSIM", "SSIM affine")


def beside_paper(study):
    """Writes the paper's rows and the study's, one table.

    Args:
      study: read, with the column ``attack``.

    Returns:
      A Markdown table. Means over victims whose figure is finite, and how many are
      left out: an exact image has an infinite "PSNR".
    """
    body = [
        (attack, data, "FedKL" if lock else "none", "paper", *map(_short, figures), "")
        for (attack, data, lock), figures in TABLE_6.items()
    ]
    rows = study.rows.to_pylist()
    places = {(row["attack"], row["data"], row["arm"]): None for row in rows}
    for place in sorted(p for p in places if not p[2].startswith("floor/")):
        mine = [r for r in rows if (r["attack"], r["data"], r["arm"]) == place]
        figures = [_mean([r[name] for r in mine]) for name in FIGURES]
        affine = _mean([r["ssim_affine_oracle"] for r in mine])
        body.append((*place, str(len(mine)), *figures, affine))
    body.sort(key=lambda line: line[0])
    return tabulate(body, HEADER, tablefmt="pipe", disable_numparse=True)


def _mean(values):
    values = np.array([np.nan if v is None else v for v in values], float)
    kept = values[np.isfinite(values)]
    missing = len(values) - len(kept)
    mean = _short(kept.mean()) if len(kept) else "-"
    return f"{mean} ({missing} left out)" if missing else mean


def _short(value):
    return f"{value:.3f}" if abs(value) < 2 else f"{value:.2f}"
