"""Scores: from reconstructions to rows, one row per victim, arm and strategy.

The schema is versioned; later versions only add columns. A column that does not apply
is None. Rows of arms ``floor/NAME`` score what is reached without any gradient.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from kljax import metrics
from kljax.data import select
from kljax.leakage import ArmResult, LeakResult
from kljax.metrics import Reference, best_floor_mse, floor_images
from kljax.staging import Victims

SCHEMA_VERSION = 2
COLUMNS = (
    "schema_version",
    "arm",
    "lock_strategy",
    "label_strategy",
    "model",
    "data",
    "victim",  # index in the dataset of the victim's first example
    "group",  # bootstrap cluster
    "label",  # of the first example
    "label_guess",
    "label_accuracy",  # share of the victim's examples
    "weights",
    "attack",
    "optimiser",
    "step_size",
    "restarts",
    "evaluations",
    "seed",
    "matmul_precision",
    "device",
    "mse",
    "psnr",
    "ssim",
    "ssim_minmax",
    "ssim_affine_oracle",
    "psnr_affine_oracle",
    "lpips_alex",
    "lpips_vgg",
    "rmse255",
    "psnr_fedkl",
    "success",  # SSIM >= 0.6
    "floor_mse",  # of the best floor of this victim
    "matching_loss",
    "matching_loss_at_truth",
    "matching_loss_floor",
    "outcome",
    "live_channels",
    "label_multiset_accuracy",  # the same, in whatever order the labels were found
)
REFERENCE_SIZE = 1000  # examples of the dataset that floors may draw from

Row = dict[str, Any]
_score = jax.jit(jax.vmap(jax.vmap(metrics.score)))


class Floors(NamedTuple):
    """What is reached without any gradient, for some victims.

    Attributes:
      best: [N] mean squared error of each victim's best floor.
      scores: name -> the victims that have it, and their scores.
    """

    best: np.ndarray
    scores: dict[str, tuple[list[int], list[Row]]]


def score_rows(result: LeakResult, floors: Floors | None = None) -> list[Row]:
    """Scores a finished study: the rows of all floors, then of all arms.

    Args:
      result: the study.
      floors: of its victims, if they are known from another study; see
        `score_floors`.
    """
    victims = result.victims
    floors = score_floors(result) if floors is None else floors
    rows = []
    for name, (having, found) in floors.scores.items():
        for n, scores in zip(having, found, strict=True):
            best = floors.best[n]
            rows.append(_row(result, victims, n, f"floor/{name}", best, scores))
    for arm in result.arms:
        rows += _arm_rows(result, arm, floors.best)
    return rows


def score_floors(result: LeakResult) -> Floors:
    """Scores the floors of a study's victims; the same whatever attacks them."""
    victims, floors = result.victims, _floors(result)
    best = np.array(
        [
            np.mean([best_floor_mse(t, f) for t, f in zip(truths, made, strict=True)])
            for truths, made in zip(victims.images, floors, strict=True)
        ]
    )
    found = {}
    for name in metrics.FLOORS:
        # A victim of which any example lacks this floor has no such row.
        having = [n for n, made in enumerate(floors) if all(name in f for f in made)]
        if not having:
            continue
        images = np.stack([[f[name] for f in floors[n]] for n in having])
        some = Victims(*(part[having] for part in victims))
        found[name] = having, _image_scores(images, some)
    return Floors(best, found)


def matched_images(arm: ArmResult, victims: Victims) -> np.ndarray:
    """Orders each victim's reconstructions [N, B, H, W, C] like the truths."""
    guesses = np.asarray(arm.attacked.reconstruction.images)
    orders = _orders(arm, victims)
    return np.stack([g[order] for g, order in zip(guesses, orders, strict=True)])


def _orders(arm: ArmResult, victims: Victims) -> list[np.ndarray]:
    guesses = arm.attacked.reconstruction.images
    return [metrics.assign(g, t) for g, t in zip(guesses, victims.images, strict=True)]


def _arm_rows(result: LeakResult, arm: ArmResult, best: np.ndarray) -> list[Row]:
    victims, attacked = result.victims, arm.attacked
    found = attacked.reconstruction
    spent = found.info.get("evaluations")  # a user's attack need not count
    orders = _orders(arm, victims)
    scores = _image_scores(matched_images(arm, victims), victims)
    rows = []
    for n, order in enumerate(orders):
        live = int(attacked.live_channels[n])
        guesses = found.labels[n][order]
        loss, at_truth = float(found.loss[n]), float(attacked.loss_at_truth[n])
        measured = np.isfinite(at_truth)
        # What the replay misses at the true images is the replay's own error, and a
        # loss below it says nothing about images: it must not pass for a match.
        reachable = at_truth if result.config.replay_is_exact else 0.0
        floor = (
            metrics.loss_floor(reachable, float(attacked.loss_scale[n]))
            if measured
            else None
        )
        row = _row(result, victims, n, arm.arm.name, best[n], scores[n])
        row |= {
            "lock_strategy": arm.arm.lock_strategy,
            "label_strategy": arm.threat.strategy.labels,
            "label_guess": int(guesses[0]),
            "label_accuracy": float(np.mean(guesses == victims.labels[n])),
            "attack": result.config.attack,
            "optimiser": result.config.optimiser,
            "step_size": result.config.step_size,
            "restarts": result.config.restarts,
            "evaluations": None if spent is None else int(spent[n]),
            "matching_loss": loss,
            "matching_loss_at_truth": at_truth if measured else None,
            "matching_loss_floor": floor,
            "outcome": metrics.outcome(
                ssim=row["ssim"],
                mse=row["mse"],
                best_floor_mse=row["floor_mse"],
                matching_loss=loss if measured else None,
                loss_floor=floor,
                finite=bool(found.finite[n]),
            ),
            "live_channels": live if live or arm.arm.gated else None,
            "label_multiset_accuracy": metrics.multiset_accuracy(
                found.labels[n], victims.labels[n]
            ),
        }
        rows.append(row)
    return rows


def _row(
    result: LeakResult, victims: Victims, n: int, arm: str, best: float, scores: Row
) -> Row:
    config = result.config
    row: Row = dict.fromkeys(COLUMNS)
    row |= {
        "schema_version": SCHEMA_VERSION,
        "arm": arm,
        "model": config.model,
        "data": config.data,
        "victim": int(victims.indices[n, 0]),
        "group": int(victims.groups[n]),
        "label": int(victims.labels[n, 0]),
        "weights": config.weights,
        "seed": config.seed,
        "matmul_precision": config.precision,
        "device": jax.devices()[0].device_kind,
        "success": metrics.success(scores["ssim"]),
        "floor_mse": float(best),
    }
    return row | scores


def _image_scores(images: np.ndarray, victims: Victims) -> list[Row]:
    """Scores images [N, B, H, W, C]; each victim gets the mean over its examples."""
    table = {
        name: np.asarray(values).mean(axis=1)
        for name, values in _score(images, victims.images).items()
    }
    if metrics.lpips_available():
        flat = (-1, *images.shape[2:])
        for network in ("alex", "vgg"):
            distances = metrics.lpips_distances(
                images.reshape(flat), victims.images.reshape(flat), network
            )
            table[f"lpips_{network}"] = distances.reshape(images.shape[:2]).mean(axis=1)
    return [
        {name: float(values[n]) for name, values in table.items()}
        for n in range(len(images))
    ]


def _floors(result: LeakResult) -> list[list[dict[str, np.ndarray]]]:
    """Makes the floors of every example of every victim: [N][B]{name: image}."""
    dataset, victims, seed = result.dataset, result.victims, result.config.seed
    # Another seed than the victims', who would otherwise all be part of it.
    chosen = select(dataset, min(REFERENCE_SIZE, len(dataset)), seed + 1)
    reference = Reference(*dataset.fetch(chosen), chosen)
    return [
        [
            floor_images(image, label, index, reference, seed)
            for image, label, index in zip(images, labels, indices, strict=True)
        ]
        for images, labels, indices in zip(
            victims.images, victims.labels, victims.indices, strict=True
        )
    ]
