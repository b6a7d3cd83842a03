"""Scores: from reconstructions to rows, one row per private image, arm and strategy.

`kljax.metrics.COLUMNS` says what is in a row. An upload of several examples has a row
for each of them; what is known of the upload alone (losses, live channels, ...) is the
same in all of them. The schema is versioned; later versions only add columns, but for
`victim`, see `SCHEMA_VERSION`. A column that does not apply is None. Rows of arms
``floor/NAME`` score what is reached without any gradient.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike

from kljax import metrics
from kljax.attacks.presets import find_preset
from kljax.core.folders import optional
from kljax.core.inputs import InputSpec
from kljax.data import Dataset, select
from kljax.defences.arms import Arm, last_transform
from kljax.metrics import COLUMNS, Column
from kljax.metrics.kinds import Kind, find_kind
from kljax.studies.config import LeakConfig
from kljax.studies.leakage import ArmResult, LeakResult
from kljax.studies.row_columns import columns_of

# Up to version 3 an upload of several examples was one row, with the means of their
# scores, and `victim` and `label` were those of its first example. Since version 5 rows
# say all options that change results. Since version 6 what was `lock_strategy` is
# `secret_strategy`.
SCHEMA_VERSION = 6
REFERENCE_SIZE = 1000  # examples of the dataset that floors may draw from

# Of the truths that are scored together, with all that is made of them.
PIXELS_PER_BLOCK = 2**16

Row = dict[str, Any]
Scores = dict[str, np.ndarray]  # by column, each [N]
Guesses = tuple[list[int], np.ndarray]  # places of truths, and images [n, H, W, C]


class Floors(NamedTuple):
    """What is reached without any gradient, for the images of some victims.

    Letters: M images, those of one upload after those of another.

    Attributes:
      best: [M] each, by column: what the best floor of each image reaches.
      scores: name -> places of the images that have it, and their scores.
    """

    best: Scores
    scores: dict[str, tuple[list[int], Scores]]


def score_rows(result: LeakResult) -> list[Row]:
    """Scores a finished study: the rows of all floors, then of all arms."""
    count, examples, *shape = _truths(result).shape
    # Pixels of an image, however many channels it has; tokens of a sentence.
    size = max(1, PIXELS_PER_BLOCK // (examples * math.prod(shape[:2])))
    reference = _reference(result.dataset, result.config.seed)
    rows = []
    for start in range(0, count, size):
        part = _part(result, slice(start, start + size))
        rows += score(part, _score_floors(part, reference))[0]
    names = [f"floor/{name}" for name in find_kind(result.dataset.input_spec).floors]
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
    columns = columns_of(result.config)
    if floors is None:
        reference = _reference(result.dataset, result.config.seed)
        floors = _score_floors(result, reference)
    rows = [
        _row(result, columns, place, f"floor/{name}", floors, _at(columns, scores, n))
        for name, (having, scores) in floors.scores.items()
        for n, place in enumerate(having)
    ]
    truths = _flat(_truths(result))
    everyone = list(range(len(truths)))
    sets = [(everyone, _flat(matched_images(arm, result))) for arm in result.arms]
    # Apart from the floors, which may be known: the last bits of an image's scores
    # may depend on what else is in a call, and rows must not on what came before.
    scored = _scores_of(sets, truths, result)
    for arm, guesses, scores in zip(result.arms, sets, scored, strict=True):
        scores |= _substitute_scores(result, arm, guesses)
        rows += _arm_rows(result, columns, arm, floors, scores)
    return rows, floors


def _substitute_scores(result: LeakResult, arm: ArmResult, guesses: Guesses) -> Scores:
    """Scores guesses against what was trained on in place of the private images."""
    if arm.attacked.substitute is None:
        return {}
    spec = result.dataset.input_spec
    substitutes = _flat(np.asarray(spec.scored_of(arm.attacked.substitute)))
    (scores,) = _scores_of([guesses], substitutes, result)
    named = {f"{name}_substitute": scores.get(name) for name in ("ssim", "psnr")}
    return {name: values for name, values in named.items() if values is not None}


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
      For each example name -> image [H, W, C], see `kljax.metrics.floors`, or what
      inputs of another kind have (`kljax.metrics.kinds`); a floor is missing where
      there is no other example to make it of.

    Raises:
      ValueError: for an image of another shape than the dataset's, or that is not
        the one of its index.
    """
    examples = images, _classes(dataset, labels, indices), indices
    spec = dataset.input_spec.scored
    return _floors(*examples, _reference(dataset, seed), seed, spec)


def matched_images(arm: ArmResult, result: LeakResult) -> np.ndarray:
    """Orders each victim's reconstructions [N, B, H, W, C] like the truths.

    Of several inputs, those of the one that is scored.
    """
    spec, orders = result.dataset.input_spec, _orders(arm, result)
    guesses = np.asarray(spec.scored_of(arm.attacked.reconstruction.inputs))
    return np.stack([g[order] for g, order in zip(guesses, orders, strict=True)])


def _truths(result: LeakResult) -> np.ndarray:
    """Gives the private inputs [N, B, ...] that are scored."""
    return result.dataset.input_spec.scored_of(result.victims.inputs)


def _classes(dataset: Dataset, labels: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Gives the class [n] of targets [n, ...]; without classes each is its own."""
    class_of = dataset.target_spec.class_of
    return indices if class_of is None else class_of(labels)


def _flat(values: np.ndarray) -> np.ndarray:
    """Lists what each example has: [N, B, ...] becomes [N * B, ...]."""
    return values.reshape(-1, *values.shape[2:])


def _orders(arm: ArmResult, result: LeakResult) -> list[np.ndarray]:
    guesses = result.dataset.input_spec.scored_of(arm.attacked.reconstruction.inputs)
    pairs = zip(guesses, _truths(result), strict=True)
    return [metrics.assign(guess, truth) for guess, truth in pairs]


def _arm_rows(
    result: LeakResult,
    columns: dict[str, Column],
    arm: ArmResult,
    floors: Floors,
    scores: Scores,
) -> list[Row]:
    victims, attacked = result.victims, arm.attacked
    found, kind = attacked.reconstruction, find_kind(result.dataset.input_spec)
    targets = result.dataset.target_spec
    spent = found.numbers.get("evaluations")  # a user's attack need not count
    degree = _degree(result.config, arm.arm)
    labels = arm.threat.strategy.labels
    rows = []
    for n, order in enumerate(_orders(arm, result)):
        live = int(attacked.live_channels[n])
        guesses = np.asarray(found.labels[n])[order]
        of_targets = targets.score(guesses, victims.labels[n])
        classes = in_any_order = None
        if targets.class_of is not None:
            classes, true = map(targets.class_of, (guesses, victims.labels[n]))
            in_any_order = metrics.multiset_accuracy(classes, true)
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
        of_upload |= _at(columns, found.numbers, n)
        if searched:
            of_upload |= _options(result.config, "search")
        else:
            of_upload["evaluations"] = None
        if labels != "recovered":
            of_upload["label_rule"] = None
        of_upload |= {
            "secret_strategy": arm.arm.secret_strategy,
            "label_strategy": labels,
            "matching_loss": loss,
            "matching_loss_at_truth": at_truth if measured else None,
            "matching_loss_floor": floor,
            "matching_loss_scale": scale if measured else None,
            "matching_loss_degree": degree if measured else None,
            "live_channels": live if live or arm.arm.gated else None,
            "label_multiset_accuracy": in_any_order,
            "feature_error": error if np.isfinite(error) else None,
            "replay_is_exact": exact if measured else None,
            "label_rule_holds": None if np.isnan(holds) else bool(holds),
            "visible_share": float(attacked.visible_share[n]),
        }
        for example in range(len(guesses)):
            place = n * len(guesses) + example
            scored = _at(columns, scores, place)
            row = _row(result, columns, place, arm.arm.name, floors, scored)
            row |= of_upload | {
                "label_guess": None if classes is None else int(classes[example]),
                **_at(columns, of_targets, example),
                "outcome": kind.outcome(
                    row, loss if measured else None, floor, bool(found.finite[n])
                ),
            }
            rows.append(row)
    return rows


def _degree(config: LeakConfig, arm: Arm) -> int | None:
    """Gives the degree of the attack's objective, see `kljax.metrics.loss_floor`."""
    degree = find_preset(config.attack).degree
    return last_transform(arm.defence).log_prob_degree if degree is None else degree


def _row(
    result: LeakResult,
    columns: dict[str, Column],
    place: int,
    arm: str,
    floors: Floors,
    scores: Row,
) -> Row:
    config, victims = result.config, result.victims
    n, example = divmod(place, victims.labels.shape[1])
    class_of = result.dataset.target_spec.class_of
    label = None if class_of is None else class_of(victims.labels[n, [example]])[0]
    row: Row = dict.fromkeys(columns) | _options(config, "all")
    row |= {
        "schema_version": SCHEMA_VERSION,
        "arm": arm,
        "victim": int(result.dataset.positions_of(victims.indices[n, [example]])[0]),
        "group": int(victims.groups[n]),
        "label": None if label is None else int(label),
        "kind": result.dataset.input_spec.scored.kind,
        "input": result.dataset.input_spec.primary,
        "device": jax.devices()[0].device_kind,
        "success": find_kind(result.dataset.input_spec).success(scores),
        "upload": int(victims.uploads[n]),
        "example": example,
    }
    return row | _at(columns, floors.best, place) | scores


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


def _at(columns: dict[str, Column], scores: Mapping[str, Any], place: int) -> Row:
    """Writes what is at one place as its columns have it."""
    return {
        name: _value(columns[name].dtype, values[place])
        for name, values in scores.items()
    }


def _value(dtype: str, value: Any) -> str | float | int | bool | None:
    if dtype in ("string", "float64"):
        return str(value) if dtype == "string" else float(value)
    if not np.isfinite(value):  # which no whole number says
        return None
    return bool(value) if dtype == "bool" else int(value)


def _reference(dataset: Dataset, seed: int) -> Any:
    # Another seed than the victims', who would otherwise all be part of it.
    chosen = select(dataset, min(REFERENCE_SIZE, len(dataset)), seed + 1)
    make, spec = find_kind(dataset.input_spec).reference, dataset.input_spec
    inputs, labels = dataset.fetch(chosen)
    classes = _classes(dataset, labels, chosen)
    return make(spec.scored_of(inputs), classes, chosen, spec.scored)


def _floors(
    images: ArrayLike,
    labels: ArrayLike,
    indices: ArrayLike,
    reference: Any,
    seed: int,
    spec: InputSpec,
) -> list[dict[str, np.ndarray]]:
    make = find_kind(spec).make_floors
    return [
        make(image, label, index, reference, seed)
        for image, label, index in zip(images, labels, indices, strict=True)
    ]


def _score_floors(result: LeakResult, reference: Any) -> Floors:
    victims, spec = result.victims, result.dataset.input_spec.scored
    kind: Kind = find_kind(spec)
    truths, labels, indices = map(
        _flat, (_truths(result), victims.labels, victims.indices)
    )
    labels = _classes(result.dataset, labels, indices)
    made = _floors(truths, labels, indices, reference, result.config.seed, spec)
    sets = {}
    for name in kind.floors:
        # An image of which there is no other of its class lacks some.
        having = [place for place, floors in enumerate(made) if name in floors]
        if having:
            sets[name] = having, np.stack([made[place][name] for place in having])
    scored = zip(
        sets.items(), _scores_of([*sets.values()], truths, result), strict=True
    )
    scores = {name: (having, its) for (name, (having, _)), its in scored}
    return Floors(kind.best_floors(truths, made, scores), scores)


def _scores_of(
    sets: list[Guesses], truths: np.ndarray, result: LeakResult
) -> list[Scores]:
    """Scores sets of guesses against their truths, all in one table."""
    guesses = np.concatenate([images for _, images in sets])
    truths = np.concatenate([truths[places] for places, _ in sets])
    spec = result.dataset.input_spec.scored
    table = find_kind(spec).score(guesses, truths, spec)
    for own in metrics.find_metrics(result.config.metrics):
        with optional(f"metric {own.column.name!r}"):
            table[own.column.name] = metrics.score_pairs(own, guesses, truths)
    ends = np.cumsum([len(places) for places, _ in sets])[:-1]
    split = {name: np.split(values, ends) for name, values in table.items()}
    return [{name: split[name][n] for name in split} for n in range(len(sets))]


def _part(result: LeakResult, part: slice) -> LeakResult:
    arms = [
        arm._replace(attacked=jax.tree.map(lambda x: x[part], arm.attacked))
        for arm in result.arms
    ]
    victims = jax.tree.map(lambda values: values[part], result.victims)
    return result._replace(victims=victims, arms=arms)
