"""Scores: from reconstructions to rows, one row per victim, arm and strategy.

The schema is versioned; later versions only add columns. A column that does not apply
is None. Rows of arms ``floor/NAME`` score what is reached without any gradient.
"""

import math
import warnings
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike

from kljax import metrics
from kljax.attacks.presets import find_preset
from kljax.data import Dataset, select
from kljax.leakage import ArmResult, LeakResult
from kljax.metrics import Reference, best_floor_mse
from kljax.run_folder import LeftOut
from kljax.staging import Victims

SCHEMA_VERSION = 3
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
    "label_guess",  # -1 where the upload says nothing of labels
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
    "feature_error",  # of the classifier's input as its gradient says, relative
    "bins_read",  # of the imprint: at most so many images lie open
    "replay_is_exact",  # the true images replay to the upload before its release
)
REFERENCE_SIZE = 1000  # examples of the dataset that floors may draw from

# Of images, in one call of the compiled function; and of the truths that are scored
# together, with all that is made of them.
PIXELS_PER_CALL = 2**13
PIXELS_PER_BLOCK = 2**16

Row = dict[str, Any]
Scores = dict[str, np.ndarray]  # by column, each [N]
Guesses = tuple[list[int], np.ndarray]  # of which victims, and images [n, B, H, W, C]
_score = jax.jit(jax.vmap(metrics.score))


class Floors(NamedTuple):
    """What is reached without any gradient, for some victims.

    Attributes:
      best: [N] mean squared error of each victim's best floor.
      scores: name -> the victims that have it, and their scores.
    """

    best: np.ndarray
    scores: dict[str, tuple[list[int], Scores]]


def score_rows(result: LeakResult) -> list[Row]:
    """Scores a finished study: the rows of all floors, then of all arms."""
    count, *shape = result.victims.images.shape[:4]
    size = max(1, PIXELS_PER_BLOCK // math.prod(shape))
    reference = _reference(result.dataset, result.config.seed)
    rows = []
    for start in range(0, count, size):
        part = _part(result, slice(start, start + size))
        rows += score(part, _score_floors(part, reference))[0]
    names = [f"floor/{name}" for name in metrics.FLOORS]
    names += [arm.arm.name for arm in result.arms]
    return sorted(rows, key=lambda row: names.index(row["arm"]))


def score(result: LeakResult, floors: Floors | None = None) -> tuple[list[Row], Floors]:
    """Scores some victims of a study: the rows of all floors, then of all arms.

    Args:
      result: the study.
      floors: of its victims, if another study of the same victims and seed gave them.

    Returns:
      The rows, and the floors.
    """
    victims = result.victims
    if floors is None:
        reference = _reference(result.dataset, result.config.seed)
        floors = _score_floors(result, reference)
    rows = [
        _row(result, n, f"floor/{name}", floors.best[n], _at(scores, place))
        for name, (having, scores) in floors.scores.items()
        for place, n in enumerate(having)
    ]
    everyone = list(range(len(victims.labels)))
    sets = [(everyone, matched_images(arm, victims)) for arm in result.arms]
    # Apart from the floors, which may be known: the last bits of an image's scores
    # may depend on what else is in a call, and rows must not on what came before.
    for arm, scores in zip(result.arms, _scores_of(sets, victims), strict=True):
        rows += _arm_rows(result, arm, floors.best, scores)
    return rows, floors


def floor_images(
    dataset: Dataset,
    images: ArrayLike,
    labels: ArrayLike,
    indices: ArrayLike,
    seed: int,
) -> list[dict[str, np.ndarray]]:
    """Makes the floors of some examples, as they are scored.

    Args:
      dataset: of the study.
      images: [N, H, W, C] in [0, 1], of the victims.
      labels: [N] of them.
      indices: [N], where they are in `dataset`.
      seed: of the study.

    Returns:
      For each example name -> image [H, W, C], see `kljax.metrics.floors`; a floor is
      missing where there is no other example to make it of.

    Raises:
      ValueError: for an image of another shape than the dataset's, or that is not
        the one of its index.
    """
    return _floors(images, labels, indices, _reference(dataset, seed), seed)


def matched_images(arm: ArmResult, victims: Victims) -> np.ndarray:
    """Orders each victim's reconstructions [N, B, H, W, C] like the truths."""
    guesses = np.asarray(arm.attacked.reconstruction.images)
    orders = _orders(arm, victims)
    return np.stack([g[order] for g, order in zip(guesses, orders, strict=True)])


def _orders(arm: ArmResult, victims: Victims) -> list[np.ndarray]:
    guesses = arm.attacked.reconstruction.images
    return [metrics.assign(g, t) for g, t in zip(guesses, victims.images, strict=True)]


def _arm_rows(
    result: LeakResult, arm: ArmResult, best: np.ndarray, scores: Scores
) -> list[Row]:
    victims, attacked = result.victims, arm.attacked
    found = attacked.reconstruction
    # A user's attack need not count.
    spent, count = found.info.get("evaluations"), found.info.get("bins_read")
    degree = find_preset(result.config.attack).degree
    rows = []
    for n, order in enumerate(_orders(arm, victims)):
        live = int(attacked.live_channels[n])
        guesses = found.labels[n][order]
        loss, at_truth = float(found.loss[n]), float(attacked.loss_at_truth[n])
        measured = np.isfinite(at_truth)
        # What a wrong replay misses at the true images is its own error, and a loss
        # below it says nothing about images: it must not pass for a match.
        exact = bool(attacked.replay_is_exact[n])
        reachable = at_truth if exact else 0.0
        error = float(attacked.feature_error[n])
        floor = (
            metrics.loss_floor(reachable, float(attacked.loss_scale[n]), degree)
            if measured
            else None
        )
        row = _row(result, n, arm.arm.name, best[n], _at(scores, n))
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
            "feature_error": error if np.isfinite(error) else None,
            "bins_read": None if count is None else int(count[n]),
            "replay_is_exact": exact if measured else None,
        }
        rows.append(row)
    return rows


def _row(result: LeakResult, n: int, arm: str, best: float, scores: Row) -> Row:
    config, victims = result.config, result.victims
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


def _at(scores: Scores, place: int) -> Row:
    return {column: float(values[place]) for column, values in scores.items()}


def _reference(dataset: Dataset, seed: int) -> Reference:
    # Another seed than the victims', who would otherwise all be part of it.
    chosen = select(dataset, min(REFERENCE_SIZE, len(dataset)), seed + 1)
    return Reference(*dataset.fetch(chosen), chosen)


def _floors(
    images: ArrayLike,
    labels: ArrayLike,
    indices: ArrayLike,
    reference: Reference,
    seed: int,
) -> list[dict[str, np.ndarray]]:
    return [
        metrics.floor_images(image, label, index, reference, seed)
        for image, label, index in zip(images, labels, indices, strict=True)
    ]


def _score_floors(result: LeakResult, reference: Reference) -> Floors:
    victims = result.victims
    places = range(len(victims.labels))
    images, labels, indices = (
        part.reshape(-1, *part.shape[2:])
        for part in (victims.images, victims.labels, victims.indices)
    )
    flat = _floors(images, labels, indices, reference, result.config.seed)
    least = [best_floor_mse(t, made) for t, made in zip(images, flat, strict=True)]
    best = np.reshape(least, victims.labels.shape).mean(axis=1)
    examples = victims.labels.shape[1]
    floors = [flat[n * examples : (n + 1) * examples] for n in places]
    sets = {}
    for name in metrics.FLOORS:
        # A victim of which any example lacks this floor has no such row.
        having = [n for n in places if all(name in made for made in floors[n])]
        if having:
            sets[name] = (
                having,
                np.stack([[made[name] for made in floors[n]] for n in having]),
            )
    scores = _scores_of([*sets.values()], victims)
    named = zip(sets.items(), scores, strict=True)
    return Floors(best, {name: (having, its) for (name, (having, _)), its in named})


def _scores_of(sets: list[Guesses], victims: Victims) -> list[Scores]:
    """Scores sets of guesses; each victim gets the mean over its examples."""
    guesses = np.concatenate([images for _, images in sets])
    truths = np.concatenate([victims.images[having] for having, _ in sets])
    count, examples, *shape = guesses.shape
    guesses, truths = (side.reshape(-1, *shape) for side in (guesses, truths))
    table = _score_flat(guesses, truths)
    if metrics.lpips_available():
        table |= _lpips(guesses, truths)
    means = {
        name: values.reshape(count, examples).mean(axis=1)
        for name, values in table.items()
    }
    ends = np.cumsum([len(having) for having, _ in sets])[:-1]
    split = {name: np.split(values, ends) for name, values in means.items()}
    return [{name: split[name][n] for name in split} for n in range(len(sets))]


def _lpips(guesses: np.ndarray, truths: np.ndarray) -> Scores:
    """Computes LPIPS, which is optional; leaves out, with a warning, what fails."""
    found, channels = {}, truths.shape[-1]
    if channels not in metrics.LPIPS_CHANNELS:
        words = (
            f"LPIPS is left out: it compares images of 1 or 3 channels, not {channels}"
        )
        warnings.warn(words, LeftOut, stacklevel=2)
        return found
    for network in ("alex", "vgg"):
        column = f"lpips_{network}"
        try:
            found[column] = metrics.lpips_distances(guesses, truths, network)
        except Exception as error:  # other scores are not lost for it
            warnings.warn(f"{column} is left out: {error}", LeftOut, stacklevel=2)
    return found


def _score_flat(guesses: np.ndarray, truths: np.ndarray) -> Scores:
    count, height, width, _ = guesses.shape
    size = max(1, PIXELS_PER_CALL // (height * width))
    calls = []
    for start in range(0, count, size):
        # Filled up with the last pair: one shape, one compilation.
        places = np.minimum(np.arange(start, start + size), count - 1)
        calls.append(_score(guesses[places], truths[places]))
    return {
        name: np.concatenate([call[name] for call in calls])[:count]
        for name in calls[0]
    }


def _part(result: LeakResult, part: slice) -> LeakResult:
    arms = [
        arm._replace(attacked=jax.tree.map(lambda x: x[part], arm.attacked))
        for arm in result.arms
    ]
    victims = Victims(*(values[part] for values in result.victims))
    return result._replace(victims=victims, arms=arms)
