"""Do risk scores rank victims as an attack does?

What: `kljax.leak --risk` on digits of 12x12 grey pixels, LeNet drawn afresh for each;
Spearman's rank correlation between each score and what the attack recovers, per arm.
Device: any. Trials: 24 victims of seed 0 in each arm, one example each.
Results: experiments/risk_scores.md.

    python experiments/risk_scores.py
    python experiments/risk_scores.py --arms none keylock/known --folder runs/risk

Each arm is one study, whose rows are kept in the folder: a second start goes on where
the first was stopped, and prints only what is there.
"""

import argparse
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import stats
from tabulate import tabulate

from kljax import LeakConfig, leak, score_rows
from kljax.parallel.compilation import use_cache

ARMS = (
    "none",
    "gaussian-noise=0.001",
    "gaussian-noise=0.01",
    "bn-control",
    "keylock/known",
    "keylock/regress_gates",
)
COMMON = {
    "model": "lenet",
    "data": "digits",
    "image_size": 12,
    "channels": 1,
    "attack": "matching",
    "steps": 200,
    "victims": 24,
    "risk": True,
}
# Score -> whether a higher one is said to be more risk (1), or less (-1).
SCORES = {
    "risk_largest": 1,
    "risk_least": 1,
    "risk_i2f_bound": -1,
    "risk_cramer_rao": -1,
    "risk_curvature_largest": 1,
    "risk_curvature_least": 1,
    "risk_upload_norm": 1,
}
RESAMPLES = 2000


class Rank(NamedTuple):
    """Spearman's correlation, with its 95 % interval; NaN where there is none."""

    rho: float
    low: float
    high: float


def rank(risks: np.ndarray, recovered: np.ndarray, seed: int = 0) -> Rank:
    """Correlates ranks of n victims, and resamples victims.

    Args:
      risks: [n], higher for more risk; victims whose risk is NaN are left out.
      recovered: [n], higher for more recovered.
      seed: of the bootstrap.

    Returns:
      The correlation and its percentile interval: NaN for fewer than four victims,
      and where either is the same for all of them.
    """
    there = np.isfinite(risks) & np.isfinite(recovered)
    risks, recovered = risks[there], recovered[there]
    distinct = min(len(np.unique(risks)), len(np.unique(recovered)), len(risks) // 2)
    if distinct < 2:
        return Rank(*[np.nan] * 3)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(risks), size=(RESAMPLES, len(risks)))
    ranks = [
        np.apply_along_axis(stats.rankdata, 1, x[drawn]) for x in (risks, recovered)
    ]
    centred = [r - r.mean(axis=1, keepdims=True) for r in ranks]
    lengths = np.prod([np.linalg.norm(r, axis=1) for r in centred], axis=0)
    found = np.sum(centred[0] * centred[1], axis=1)[lengths > 0] / lengths[lengths > 0]
    rho = stats.spearmanr(risks, recovered).statistic
    return Rank(float(rho), *map(float, np.quantile(found, (0.025, 0.975))))


def written(found: Rank) -> str:
    """Writes a correlation; a star where its interval leaves 0 out."""
    if not np.isfinite(found.rho):
        return "-"
    star = "*" if found.low > 0 or found.high < 0 else ""
    return f"{found.rho:+.2f}{star} [{found.low:+.2f}, {found.high:+.2f}]"


def study(arm: str) -> list[dict]:
    """Runs one arm; gives its rows."""
    rows = score_rows(leak(LeakConfig(arms=(arm,), **COMMON)))
    names = ("victim", "outcome", "ssim", "mse", "ssim_affine_oracle", *SCORES)
    return [{name: row[name] for name in names} for row in rows if row["arm"] == arm]


def column(rows: list[dict], name: str) -> np.ndarray:
    """Lists the values of a column, NaN where there is none."""
    return np.array([np.nan if row[name] is None else row[name] for row in rows])


def ranks_of(rows: list[dict], recovered: np.ndarray) -> list[str]:
    """Correlates each score with what was recovered."""
    return [
        written(rank(sign * column(rows, score), recovered))
        for score, sign in SCORES.items()
    ]


PAGE = """\
# Risk scores: do they rank victims as an attack does?

Made by `python experiments/risk_scores.py`.

Risk scores are computed from derivatives at the true input (`kljax leak --risk`,
`kljax/studies/risk.py` has the formulas); no attack is shown any. Each line is
{victims} digits of 12x12 grey pixels, each with a LeNet of its own, attacked by
`matching` in {steps} evaluations. In the cells is Spearman's rank correlation between a
score and what was recovered, signed so that +1 is a score that ranks victims exactly as
the attack does, with a 95 % interval from {resamples} resamples of the victims; a star
where the interval leaves 0 out. Seven scores in many arms are looked at: one star in
twenty is chance.

By squared error:

{by_error}

By SSIM after the best brightness and contrast, which a norm layer hides:

{by_ssim}

What was recovered, and the medians of the scores:

{medians}
"""


def main() -> None:
    """Runs what is asked for, and prints the page of what is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("runs/risk"))
    parser.add_argument("--arms", nargs="*", default=[*ARMS])
    given = parser.parse_args()
    use_cache()
    given.folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[dict]] = {}
    for arm in dict.fromkeys((*ARMS, *given.arms)):
        path = given.folder / f"{arm.replace('/', '-')}.json"
        if not path.exists() and arm in given.arms:
            path.write_text(json.dumps(study(arm)))
        if path.exists():
            found[arm] = json.loads(path.read_text())
    by_error, by_ssim, medians = [], [], []
    for arm, rows in found.items():
        by_error.append([arm, *ranks_of(rows, -column(rows, "mse"))])
        by_ssim.append([arm, *ranks_of(rows, column(rows, "ssim_affine_oracle"))])
        outcomes = [row["outcome"] for row in rows]
        share = f"{outcomes.count('recovered')} of {len(rows)}"
        values = [median(column(rows, name)) for name in ("mse", *SCORES)]
        medians.append([arm, share, *values])
    names = [score.removeprefix("risk_").replace("_", " ") for score in SCORES]
    print(
        PAGE.format(
            victims=COMMON["victims"],
            steps=COMMON["steps"],
            resamples=RESAMPLES,
            by_error=table(by_error, ["arm", *names]),
            by_ssim=table(by_ssim, ["arm", *names]),
            medians=table(medians, ["arm", "recovered", "squared error", *names]),
        ),
        end="",
    )


def median(values: np.ndarray) -> str:
    """Writes the median of the values that there are."""
    there = values[np.isfinite(values)]
    return f"{np.median(there):.1e}" if len(there) else "-"


def table(lines: list[list[str]], head: list[str]) -> str:
    """Draws a table."""
    return tabulate(lines, head, tablefmt="github", disable_numparse=True)


if __name__ == "__main__":
    main()
