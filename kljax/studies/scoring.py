"""Scores: from reconstructions to rows, one row per private image, arm and strategy.

`kljax.metrics.COLUMNS` says what is in a row. An upload of several examples has a row
for each of them; what is known of the upload alone (losses, live channels, ...) is the
same in all of them. The schema is versioned; later versions only add columns, but for
`victim`, see `SCHEMA_VERSION`. A column that does not apply is None. Rows of arms
``floor/NAME`` score what is reached without any gradient.
"""

import math
import warnings
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike

from kljax import metrics
from kljax.attacks.presets import find_preset
from kljax.core.folders import LeftOut, optional
from kljax.data import Dataset, select
from kljax.metrics import COLUMNS, Reference, best_floor_mse
from kljax.studies.builder.victim_setup import Victims
from kljax.studies.config import LeakConfig
from kljax.studies.leakage import ArmResult, LeakResult

# Up to version 3 an upload of several examples was one row, with the means of their
# scores, and `victim` and `label` were those of its first example. Since version 5 rows
# say all options that change results.
SCHEMA_VERSION = 5
REFERENCE_SIZE = 1000  # examples of the dataset that floors may draw from

# Of images, in one call of the compiled function; and of the truths that are scored
# together, with all that is made of them.
PIXELS_PER_CALL = 2**13
PIXELS_PER_BLOCK = 2**16

# dtype of a column -> type of what is in a row
KINDS = {"int32": int, "int64": int, "float64": float, "bool": bool}
Row = dict[str, Any]
Scores = dict[str, np.ndarray]  # by column, each [N]
Guesses = tuple[list[int], np.ndarray]  # places of truths, and images [n, H, W, C]
_score = jax.jit(jax.vmap(metrics.score))


class Floors(NamedTuple):
    """What is reached without any gradient, for the images of some victims.

    Letters: M images, those of one upload after those of another.

    Attributes:
      best: [M] mean squared error of each image's best floor.
      best_affine: [M] the same after the best affine map per channel of each floor.
      scores: name -> places of the images that have it, and their scores.
    """

    best: np.ndarray
    best_affine: np.ndarray
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
        _row(result, place, f"floor/{name}", floors, _at(scores, n))
        for name, (having, scores) in floors.scores.items()
        for n, place in enumerate(having)
    ]
    truths = _flat(victims.images)
    everyone = list(range(len(truths)))
    sets = [(everyone, _flat(matched_images(arm, victims))) for arm in result.arms]
    # Apart from the floors, which may be known: the last bits of an image's scores
    # may depend on what else is in a call, and rows must not on what came before.
    for arm, scores in zip(result.arms, _scores_of(sets, truths), strict=True):
        rows += _arm_rows(result, arm, floors, scores)
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


def _flat(values: np.ndarray) -> np.ndarray:
    """Lists what each example has: [N, B, ...] becomes [N * B, ...]."""
    return values.reshape(-1, *values.shape[2:])


def _orders(arm: ArmResult, victims: Victims) -> list[np.ndarray]:
    guesses = arm.attacked.reconstruction.images
    return [metrics.assign(g, t) for g, t in zip(guesses, victims.images, strict=True)]


def _arm_rows(
    result: LeakResult, arm: ArmResult, floors: Floors, scores: Scores
) -> list[Row]:
    victims, attacked = result.victims, arm.attacked
    found = attacked.reconstruction
    spent = found.numbers.get("evaluations")  # a user's attack need not count
    degree = find_preset(result.config.attack).degree
    labels = arm.threat.strategy.labels
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
        # A closed form makes no evaluation, whatever number it was offered.
        searched = spent is None or int(spent[n]) > 0
        holds = float(attacked.label_rule_holds[n])
        scale = float(attacked.loss_scale[n])
        floor = metrics.loss_floor(reachable, scale, degree) if measured else None
        of_upload = _options(result.config, "attack")
        of_upload |= {name: _number(name, of[n]) for name, of in found.numbers.items()}
        if searched:
            of_upload |= _options(result.config, "search")
        else:
            of_upload["evaluations"] = None
        if labels != "recovered":
            of_upload["label_rule"] = None
        of_upload |= {
            "lock_strategy": arm.arm.lock_strategy,
            "label_strategy": labels,
            "matching_loss": loss,
            "matching_loss_at_truth": at_truth if measured else None,
            "matching_loss_floor": floor,
            "matching_loss_scale": scale if measured else None,
            "matching_loss_degree": degree if measured else None,
            "live_channels": live if live or arm.arm.gated else None,
            "label_multiset_accuracy": metrics.multiset_accuracy(
                found.labels[n], victims.labels[n]
            ),
            "feature_error": error if np.isfinite(error) else None,
            "replay_is_exact": exact if measured else None,
            "label_rule_holds": None if np.isnan(holds) else bool(holds),
        }
        for example, guess in enumerate(guesses):
            place = n * len(guesses) + example
            row = _row(result, place, arm.arm.name, floors, _at(scores, place))
            row |= of_upload | {
                "label_guess": int(guess),
                "label_accuracy": float(guess == victims.labels[n, example]),
                "outcome": metrics.outcome(
                    ssim=row["ssim"],
                    mse=row["mse"],
                    best_floor_mse=row["floor_mse"],
                    ssim_affine=row["ssim_affine_oracle"],
                    mse_affine=row["mse_affine_oracle"],
                    best_floor_mse_affine=row["floor_mse_affine"],
                    matching_loss=loss if measured else None,
                    loss_floor=floor,
                    finite=bool(found.finite[n]),
                ),
            }
            rows.append(row)
    return rows


def _row(result: LeakResult, place: int, arm: str, floors: Floors, scores: Row) -> Row:
    config, victims = result.config, result.victims
    n, example = divmod(place, victims.labels.shape[1])
    row: Row = dict.fromkeys(COLUMNS) | _options(config, "all")
    row |= {
        "schema_version": SCHEMA_VERSION,
        "arm": arm,
        "victim": int(result.dataset.positions_of(victims.indices[n, [example]])[0]),
        "group": int(victims.groups[n]),
        "label": int(victims.labels[n, example]),
        "device": jax.devices()[0].device_kind,
        "success": metrics.success(scores["ssim"]),
        "floor_mse": float(floors.best[place]),
        "upload": int(victims.uploads[n]),
        "example": example,
        "floor_mse_affine": float(floors.best_affine[place]),
    }
    return row | scores


def _options(config: LeakConfig, rows: str) -> Row:
    """Lists the options that are columns of ``all`` rows, or of those of an attack."""
    unused = config.unused()
    return {
        column.name: _plain(getattr(config, column.option))
        for column in COLUMNS.values()
        if column.option and column.rows == rows and column.option not in unused
    }


def _plain(value: Any) -> Any:
    """Writes an option as one value: lists with commas, and an empty one as None."""
    return (",".join(value) or None) if isinstance(value, tuple) else value


def _number(column: str, value: Any) -> float | int | bool:
    """Writes a number of an attack as its column has it."""
    return KINDS[COLUMNS[column].dtype](value)


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
    truths, labels, indices = map(
        _flat, (victims.images, victims.labels, victims.indices)
    )
    made = _floors(truths, labels, indices, reference, result.config.seed)
    best = [best_floor_mse(t, floors) for t, floors in zip(truths, made, strict=True)]
    sets = {}
    for name in metrics.FLOORS:
        # An image of which there is no other of its class lacks some.
        having = [place for place, floors in enumerate(made) if name in floors]
        if having:
            sets[name] = having, np.stack([made[place][name] for place in having])
    scored = zip(sets.items(), _scores_of([*sets.values()], truths), strict=True)
    scores = {name: (having, its) for (name, (having, _)), its in scored}
    best_affine = np.full(len(truths), np.inf)
    for having, its in scores.values():
        fitted = np.minimum(best_affine[having], its["mse_affine_oracle"])
        best_affine[having] = fitted
    return Floors(np.asarray(best), best_affine, scores)


def _scores_of(sets: list[Guesses], truths: np.ndarray) -> list[Scores]:
    """Scores sets of guesses against their truths, all in one table."""
    guesses = np.concatenate([images for _, images in sets])
    truths = np.concatenate([truths[places] for places, _ in sets])
    table = _score_flat(guesses, truths)
    ratio = table["psnr_affine_oracle"].astype(np.float64)
    table["mse_affine_oracle"] = 10 ** (-ratio / 10)  # data range 1
    if metrics.lpips_available():
        table |= _lpips(guesses, truths)
    ends = np.cumsum([len(places) for places, _ in sets])[:-1]
    split = {name: np.split(values, ends) for name, values in table.items()}
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
        with optional(column):  # other scores are not lost for it
            found[column] = metrics.lpips_distances(guesses, truths, network)
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
