"""Study folders that nobody ran: rows are drawn, and look like those of digits.

What matters is their form, which is that of ``kljax sweep``; where a test holds numbers
against what it worked out by hand, it gives the rows itself.
"""

import dataclasses
import hashlib
import itertools
import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
from sklearn.datasets import load_digits

from kljax import metrics
from kljax.studies import store
from kljax.studies.config import LeakConfig
from kljax.studies.scoring import SCHEMA_VERSION

ARMS = (
    "none",
    "bn-control",
    "keylock/known",
    "keylock/regress_gates",
    "keylock/fixed_random",
)
# SSIM that an attack of many evaluations reaches, and the share that it matches.
REACHED = {
    "none": (0.97, 0.95),
    "bn-control": (0.72, 0.1),
    "keylock/known": (0.69, 0.15),
    "keylock/regress_gates": (0.55, 0.6),
    "keylock/fixed_random": (0.12, 0.0),
}
FLOOR_SSIM = {
    "grey": 0.02,
    "data_mean": 0.38,
    "class_mean": 0.56,
    "same_class": 0.4,
    "own_mean_colour": 0.03,
    "noise_affine": 0.03,
}
AXES = {
    "arm": {arm: {"arm": arm} for arm in ARMS},
    "attack": {name: {"attack": name} for name in ("matching", "dlg")},
    "budget": {
        "short": {"steps": 100},
        "middle": {"steps": 400},
        "long": {"steps": 400, "restarts": 4},
    },
    "seed": {str(n): {"seed": n} for n in range(3)},
}


def make_cells(axes, fixed=None):
    """Writes out the cells of a sweep as the manifest has them."""
    cells = []
    for labels in itertools.product(*axes.values()):
        point = dict(zip(axes, labels, strict=True))
        fields = dict(fixed or {})
        for axis, label in point.items():
            fields |= axes[axis][label]
        arm = fields.pop("arm")
        config = dataclasses.asdict(LeakConfig(arms=(arm,), **fields))
        del config["layout"]
        text = json.dumps(config, sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()[:12]
        cells.append({"id": name, "point": point, "config": config, "generation": 0})
    return cells


def make_folder(folder: Path, axes=None, fixed=None, cells=None, **manifest) -> Path:
    """Makes the folder of a study of which nothing is run."""
    axes = AXES if axes is None else axes
    fixed = {"victims": 12} if fixed is None else fixed
    folder.mkdir(parents=True)
    content = {
        "schema_version": 1,
        "job": "sweep",
        "name": folder.name,
        "sweep": {"fixed": fixed, "axes": axes, "exclude": [], "options": {}},
        "axes": {axis: list(points) for axis, points in axes.items()},
        "cells": make_cells(axes, fixed) if cells is None else cells,
        "excluded": 0,
        "illegal": 0,
        "part": 64,
        "versions": {"kljax": "0.1.0", "jax": "0.10.2"},
        "device": "cpu: cpu",
        "processes": 1,
    }
    (folder / "manifest.json").write_text(json.dumps(content | manifest))
    return folder


def write_part(folder: Path, name: str, cell, rows) -> None:
    """Writes rows of one cell, of which only some columns are given."""
    manifest = json.loads((folder / "manifest.json").read_text())
    config = cell["config"]
    common = dict.fromkeys(metrics.COLUMNS) | {
        "schema_version": SCHEMA_VERSION,
        "example": 0,
        "model": config["model"],
        "data": config["data"],
        "seed": config["seed"],
        "attack": config["attack"],
        "weights": config["weights"],
        "matmul_precision": config["precision"],
        "device": "cpu",
    }
    place = {"cell": cell["id"]}
    place |= {f"axis_{axis}": cell["point"][axis] for axis in manifest["axes"]}
    lines = []
    for row in rows:
        succeeds = row["ssim"] is not None and row["ssim"] >= 0.6
        line = {"group": row["victim"], "success": succeeds} | row
        lines.append(place | common | line)
    schema = store.part_schema(manifest["axes"])
    (folder / "parts").mkdir(exist_ok=True)
    pyarrow.parquet.write_table(
        pyarrow.Table.from_pylist(lines, schema=schema),
        folder / "parts" / f"{name}.parquet",
    )


def attack_rows(cell, ssim, outcome="unsolved", loss=1e-3, **more):
    """Makes rows of an attack from the SSIM of each victim, 0, 1, ...

    `outcome`, `loss` and what is in `more` are one for all, or a list.
    """
    columns = {"ssim": ssim, "outcome": outcome, "matching_loss": loss, **more}
    rows = []
    for n in range(len(ssim)):
        row = {
            name: column[n] if isinstance(column, (list, np.ndarray)) else column
            for name, column in columns.items()
        }
        arm = cell["config"]["arms"][0]
        rows.append({"arm": arm, "victim": n, "upload": n} | row)
    return rows


def floor_rows(ssim, name="class_mean", **more):
    """Makes rows of a floor from the SSIM of each victim, 0, 1, ..."""
    arm = f"floor/{name}"
    found = [{"arm": arm, "victim": n, "upload": n} for n in range(len(ssim))]
    return [
        row
        | {"ssim": s}
        | {k: v[n] if isinstance(v, (list, np.ndarray)) else v for k, v in more.items()}
        for n, (row, s) in enumerate(zip(found, ssim, strict=True))
    ]


def sentence_rows(cell, accuracy, floor, outcome="unsolved"):
    """Makes rows of an attack on sentences, and of one floor, from token accuracies."""
    found = attack_rows(cell, [None] * len(accuracy), outcome)
    found += floor_rows([None] * len(floor), "own_tokens")
    for row, share in zip(found, [*accuracy, *floor], strict=True):
        row |= {"token_accuracy": share, "success": share == 1}
        row |= {"exact_match": share == 1, "text": "of Moses", "text_guess": "of him"}
    return found


def drawn_rows(cell):
    """Draws plausible rows of all victims of a cell."""
    config = cell["config"]
    arm, count = config["arms"][0], config["victims"]
    of_victims = np.random.default_rng([7, config["seed"]])
    victims = of_victims.choice(1797, count, replace=False)
    ease = of_victims.normal(size=count)
    floors = {
        name: np.clip(mean + 0.08 * ease + 0.05 * of_victims.normal(size=count), 0, 1)
        for name, mean in FLOOR_SSIM.items()
    }
    generator = np.random.default_rng([int(cell["id"], 16)])
    reached, matched = REACHED[arm]
    spent = np.log2(config["steps"] * config["restarts"] / 1600)
    ssim = reached + 0.05 * spent - (0.07 if config["attack"] == "dlg" else 0)
    ssim = np.clip(ssim + 0.06 * ease + 0.04 * generator.normal(size=count), 0.01, 0.99)
    mse = 0.1 * (1 - ssim) ** 1.5 + 1e-4
    loss = 10 ** (-2.5 - 2 * ssim + 0.4 * generator.normal(size=count))
    rows = []
    for n, victim in enumerate(victims):
        common = {
            "victim": int(victim),
            "group": int(victim),
            "upload": n,
            "label": int(victim) % 10,
            "floor_mse": 0.025,
        }
        for name, found in floors.items():
            scores = _scores(float(found[n]), 0.08 * (1.05 - float(found[n])))
            rows.append(common | {"arm": f"floor/{name}"} | scores)
        if ssim[n] >= 0.6 and mse[n] <= 0.0125:
            outcome = "recovered"
        elif generator.random() < 0.02:
            outcome = "diverged"
        else:
            outcome = "ambiguous" if generator.random() < matched else "unsolved"
        own = _scores(float(ssim[n]), float(mse[n]))
        if outcome == "diverged":
            own = dict.fromkeys(own, float("nan")) | {"success": False}
        rows.append(
            common
            | own
            | {
                "arm": arm,
                "secret_strategy": arm.partition("/")[2] or "unit",
                "label_strategy": "recovered",
                "label_guess": int(victim) % 10,
                "label_accuracy": 1.0,
                "restarts": config["restarts"],
                "evaluations": config["restarts"] * config["steps"],
                "matching_loss": float(loss[n]),
                "matching_loss_at_truth": 0.0,
                "matching_loss_floor": 1e-5,
                "outcome": outcome,
            }
        )
    return rows


def _scores(ssim, mse):
    return {
        "ssim": ssim,
        "ssim_affine_oracle": min(1.0, ssim + 0.6 * (1 - ssim) * ssim),
        "mse": mse,
        "psnr": float(-10 * np.log10(mse)),
        "success": metrics.success(ssim),
    }


def write_reconstructions(folder: Path, cell, rows) -> None:
    """Writes images whose noise is what the rows' squared errors say, or nearly."""
    attacked = [row for row in rows if not row["arm"].startswith("floor/")]
    digits = load_digits().images / 16
    victims = np.array([row["victim"] for row in attacked])
    truths = digits[victims % len(digits)].repeat(2, 1).repeat(2, 2)
    truths = np.repeat(truths[:, None, :, :, None], 3, -1)
    deviation = np.sqrt([np.nan_to_num(row["mse"], nan=0.1) for row in attacked])
    noise = np.random.default_rng(0).normal(size=truths.shape)
    images = truths + noise * deviation.reshape(-1, 1, 1, 1, 1)
    (folder / "reconstructions").mkdir(exist_ok=True)
    np.savez(
        folder / "reconstructions" / f"{cell['id']}.npz",
        images=images.astype(np.float32),
        truths=truths.astype(np.float32),
        victim=victims,
    )


def write_failure(folder: Path, cell) -> None:
    """Writes that a cell failed."""
    (folder / "failures").mkdir(exist_ok=True)
    arm = cell["config"]["arms"][0]
    (folder / "failures" / f"{cell['id']}.json").write_text(
        json.dumps(
            {
                "cell": cell["id"],
                "point": cell["point"],
                "error": "RuntimeError: out of memory <while> compiling",
                "traceback": "Traceback (most recent call last):\n  ...\n",
                "command": f"kljax leak --arms {arm} --seed {cell['config']['seed']}",
            }
        )
    )


def make_study(folder: Path, state: str, **options) -> Path:
    """Makes a study: ``empty``, ``partial`` (with a failure) or ``finished``.

    The partial one has the last cell failed, the one before not begun, and the one
    before that cut off in the middle. Both others keep reconstructions.
    """
    make_folder(folder, **options)
    cells = json.loads((folder / "manifest.json").read_text())["cells"]
    if state == "empty":
        return folder
    begun = cells[:-2] if state == "partial" else cells
    for number, cell in enumerate(begun):
        rows = drawn_rows(cell)
        if state == "partial" and cell is begun[-1]:
            rows = rows[: len(rows) // 2]
        else:
            write_reconstructions(folder, cell, rows)
        write_part(folder, f"00-0000-{number:05d}", cell, rows)
    if state == "partial":
        write_failure(folder, cells[-1])
    return folder
