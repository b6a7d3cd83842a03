"""Scores: from reconstructions to rows, one per arm, private example and input.

`kljax.metrics.COLUMNS` says what is in a row. An upload of several examples has rows
for each of them, and so has an example of several inputs; what is known of the upload
alone (losses, live channels, ...) is the same in all of them. The schema is versioned;
later versions only add columns, but for `victim`, see `SCHEMA_VERSION`. A column that
does not apply is None. Rows of arms ``floor/NAME`` score what is reached without any
gradient.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from kljax import metrics
from kljax.attacks.presets import find_preset
from kljax.core.inputs import InputSpec
from kljax.defences.arms import Arm, last_transform
from kljax.metrics import COLUMNS, Column
from kljax.metrics.kinds import find_kind
from kljax.studies.builder.privacy import epsilon_of_upload
from kljax.studies.config import LeakConfig
from kljax.studies.input_scores import (
    Floors,
    FloorsOfInputs,
    Guesses,
    Scores,
    flatten,
    make_references,
    own_metrics,
    score_floors,
    score_sets,
)
from kljax.studies.leakage import ArmResult, LeakResult
from kljax.studies.row_columns import columns_of

# Up to version 3 an upload of several examples was one row, with the means of their
# scores, and `victim` and `label` were those of its first example. Since version 5 rows
# say all options that change results. Since version 6 what was `lock_strategy` is
# `secret_strategy`. Before version 7 only the primary one of several inputs had rows.
SCHEMA_VERSION = 7

# Of the truths that are scored together, with all that is made of them.
PIXELS_PER_BLOCK = 2**16

Row = dict[str, Any]


class OfInput(NamedTuple):
    """One input of a study, with what its rows are made of."""

    name: str | None  # see `InputSpec.scored`
    spec: InputSpec
    columns: dict[str, Column]
    floors: Floors


def score_rows(result: LeakResult) -> list[Row]:
    """Scores a finished study: the rows of all floors, then of all arms."""
    floors = score_parts_floors(result) if result.floors is None else result.floors
    rows = []
    for part, its in zip(_parts(result), floors, strict=True):
        rows += score(part, its)[0]
    kinds = map(find_kind, result.dataset.input_spec.scored.values())
    of_floors = dict.fromkeys(name for kind in kinds for name in kind.floors)
    names = [f"floor/{name}" for name in of_floors]
    names += [arm.arm.name for arm in result.arms]
    return sorted(rows, key=lambda row: names.index(row["arm"]))


def score_parts_floors(result: LeakResult) -> list[FloorsOfInputs]:
    """Scores the floors of the victims, which no attack changes, part by part.

    Args:
      result: the study; its attacks need not be made.
    """
    references = make_references(result.dataset, result.config.seed)
    return [_score_floors(part, references) for part in _parts(result)]


def score(
    result: LeakResult, floors: FloorsOfInputs | None = None
) -> tuple[list[Row], FloorsOfInputs]:
    """Scores some victims of a study: the rows of all floors, then of all arms.

    Args:
      result: the study.
      floors: of its victims, by input, if another study of the same victims and seed
        gave them.

    Returns:
      The rows, and the floors.
    """
    columns = columns_of(result.config)
    if floors is None:
        references = make_references(result.dataset, result.config.seed)
        floors = _score_floors(result, references)
    inputs = [
        OfInput(name, spec, columns, floors[name])
        for name, spec in result.dataset.input_spec.scored.items()
    ]
    rows = [
        _row(result, one, place, f"floor/{name}", _at(columns, scores, n))
        for one in inputs
        for name, (having, scores) in one.floors.scores.items()
        for n, place in enumerate(having)
    ]
    orders = [match_orders(arm, result) for arm in result.arms]
    scores = [_scores_of_arms(result, one, orders) for one in inputs]
    for arm, order, *of_arm in zip(result.arms, orders, *scores, strict=True):
        rows += _arm_rows(result, arm, order, [*zip(inputs, of_arm, strict=True)])
    return rows, floors


def first_rows(rows: Iterable[Row]) -> list[Row]:
    """Takes one row of each upload, from those of one cell: the first in its arm."""
    found = {}
    for row in rows:
        if not row["example"]:  # of before version 4 there is none
            found.setdefault((row["arm"], row["victim"]), row)
    return [*found.values()]


def matched_inputs(arm: ArmResult, result: LeakResult) -> dict[str | None, np.ndarray]:
    """Orders each victim's reconstructions [N, B, ...] like the truths, by input.

    Of several inputs the primary one says which guess is of which example.
    """
    orders = match_orders(arm, result)
    names = result.dataset.input_spec.scored
    return {name: _matched(arm, result, name, orders) for name in names}


def matched_images(arm: ArmResult, result: LeakResult) -> np.ndarray:
    """Gives `matched_inputs` of a single input, or of the primary one of several."""
    name = result.dataset.input_spec.primary
    return _matched(arm, result, name, match_orders(arm, result))


def _matched(
    arm: ArmResult, result: LeakResult, name: str | None, orders: list[np.ndarray]
) -> np.ndarray:
    found = arm.attacked.reconstruction.inputs
    guesses = np.asarray(result.dataset.input_spec.input_of(found, name))
    return np.stack([g[order] for g, order in zip(guesses, orders, strict=True)])


def match_orders(arm: ArmResult, result: LeakResult) -> list[np.ndarray]:
    """Finds which guess [B] of each victim is of which example."""
    primary_of = result.dataset.input_spec.primary_of
    guesses = primary_of(arm.attacked.reconstruction.inputs)
    pairs = zip(guesses, primary_of(result.victims.inputs), strict=True)
    return [metrics.assign(guess, truth) for guess, truth in pairs]


def _scores_of_arms(
    result: LeakResult, one: OfInput, orders: list[list[np.ndarray]]
) -> list[Scores]:
    """Scores what each arm found of one input."""
    inputs = result.dataset.input_spec
    truths = flatten(inputs.input_of(result.victims.inputs, one.name))
    everyone = list(range(len(truths)))
    sets = [
        (everyone, flatten(_matched(arm, result, one.name, order)))
        for arm, order in zip(result.arms, orders, strict=True)
    ]
    own = own_metrics(inputs, result.config, one.name)
    # Apart from the floors, which may be known: the last bits of an image's scores
    # may depend on what else is in a call, and rows must not on what came before.
    scored = score_sets(sets, truths, one.spec, own)
    return [
        scores | _substitute_scores(result, arm, one, guesses)
        for arm, guesses, scores in zip(result.arms, sets, scored, strict=True)
    ]


def _substitute_scores(
    result: LeakResult, arm: ArmResult, one: OfInput, guesses: Guesses
) -> Scores:
    """Scores guesses against what was trained on in place of the private inputs.

    Each against one of its own, that which fits: neither their order nor their number
    need be that of the private inputs.
    """
    trained_on = arm.attacked.substitute
    if trained_on is None:
        return {}
    found = result.dataset.input_spec.input_of(trained_on, one.name)
    substitutes = np.asarray(found)
    of_uploads = guesses[1].reshape(len(substitutes), -1, *substitutes.shape[2:])
    fitting = [
        there[metrics.choose(its, there)]
        for its, there in zip(of_uploads, substitutes, strict=True)
    ]
    (scores,) = score_sets([guesses], np.concatenate(fitting), one.spec)
    named = {f"{name}_substitute": scores.get(name) for name in ("ssim", "psnr")}
    return {name: values for name, values in named.items() if values is not None}


def _arm_rows(
    result: LeakResult,
    arm: ArmResult,
    orders: list[np.ndarray],
    scored: list[tuple[OfInput, Scores]],
) -> list[Row]:
    rows = []
    for n, order in enumerate(orders):
        of_upload, of_examples = _of_upload(result, arm, scored[0][0].columns, n, order)
        loss = arm.attacked.reconstruction.loss[n]
        measured = of_upload["matching_loss_at_truth"] is not None
        judged = (
            float(loss) if measured else None,
            of_upload["matching_loss_floor"],
            bool(arm.attacked.reconstruction.finite[n]),
        )
        for example, of_example in enumerate(of_examples):
            place = n * len(order) + example
            for one, scores in scored:
                its = _at(one.columns, scores, place)
                row = _row(result, one, place, arm.arm.name, its)
                row |= of_upload | of_example
                row["outcome"] = find_kind(one.spec).outcome(row, *judged)
                rows.append(row)
    return rows


def _of_upload(
    result: LeakResult,
    arm: ArmResult,
    columns: dict[str, Column],
    n: int,
    order: np.ndarray,
) -> tuple[Row, list[Row]]:
    """Says what an attack found of an upload, and of the target of each example."""
    attacked, targets = arm.attacked, result.dataset.target_spec
    found, true = attacked.reconstruction, result.victims.labels[n]
    spent = found.numbers.get("evaluations")  # a user's attack need not count
    labels = arm.threat.strategy.labels
    live = int(attacked.live_channels[n])
    guesses = np.asarray(found.labels[n])[order]
    told = find_preset(result.config.attack).gives_labels
    of_targets = targets.score(guesses, true) if told else {}
    classes = in_any_order = None
    if told and targets.class_of is not None:
        classes = targets.class_of(guesses)
        in_any_order = metrics.multiset_accuracy(classes, targets.class_of(true))
    at_truth, degree = float(attacked.loss_at_truth[n]), _degree(result.config, arm.arm)
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
    epsilon = epsilon_of_upload(result.config, arm.arm)
    row = _options(result.config, "attack") | _at(columns, found.numbers, n)
    if searched:
        row |= _options(result.config, "search")
    else:
        row["evaluations"] = None
    if labels != "recovered" or not told:
        row["label_rule"] = None
    row |= {
        "secret_strategy": arm.arm.secret_strategy,
        "label_strategy": labels,
        "matching_loss": float(found.loss[n]),
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
        "epsilon": epsilon,
        "delta": None if epsilon is None else result.config.delta,
    }
    if attacked.risk is not None:
        scores = {f"risk_{name}": at for name, at in attacked.risk._asdict().items()}
        found_risks = _at(columns, scores, n)
        row |= {name: at for name, at in found_risks.items() if np.isfinite(at)}
    of_examples = [
        {"label_guess": None if classes is None else int(classes[example])}
        | _at(columns, of_targets, example)
        for example in range(len(order))
    ]
    return row, of_examples


def _degree(config: LeakConfig, arm: Arm) -> int | None:
    """Gives the degree of the attack's objective, see `kljax.metrics.loss_floor`."""
    degree = find_preset(config.attack).degree
    return last_transform(arm.defence).log_prob_degree if degree is None else degree


def _row(result: LeakResult, one: OfInput, place: int, arm: str, scores: Row) -> Row:
    config, victims = result.config, result.victims
    n, example = divmod(place, victims.labels.shape[1])
    class_of = result.dataset.target_spec.class_of
    label = None if class_of is None else class_of(victims.labels[n, [example]])[0]
    row: Row = dict.fromkeys(one.columns) | _options(config, "all")
    row |= {
        "schema_version": SCHEMA_VERSION,
        "arm": arm,
        "victim": int(result.dataset.positions_of(victims.indices[n, [example]])[0]),
        "group": int(victims.groups[n]),
        "label": None if label is None else int(label),
        "kind": one.spec.kind,
        "input": one.name,
        "device": jax.devices()[0].device_kind,
        "success": find_kind(one.spec).success(scores),
        "upload": int(victims.uploads[n]),
        "example": example,
    }
    return row | _at(one.columns, one.floors.best, place) | scores


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


def _score_floors(
    result: LeakResult, references: dict[str | None, Any]
) -> FloorsOfInputs:
    return score_floors(result.dataset, result.victims, result.config, references)


def _parts(result: LeakResult) -> Iterator[LeakResult]:
    """Cuts a study into victims that are scored together."""
    count, examples = result.victims.indices.shape
    # Pixels of an image, however many channels it has; tokens of a sentence.
    scored = result.dataset.input_spec.scored.values()
    pixels = sum(math.prod(spec.shape[:2]) for spec in scored)
    size = max(1, PIXELS_PER_BLOCK // (examples * pixels))
    for start in range(0, count, size):
        yield _part(result, slice(start, start + size))


def _part(result: LeakResult, part: slice) -> LeakResult:
    arms = [
        arm._replace(attacked=jax.tree.map(lambda x: x[part], arm.attacked))
        for arm in result.arms
    ]
    victims = jax.tree.map(lambda values: values[part], result.victims)
    return result._replace(victims=victims, arms=arms)
