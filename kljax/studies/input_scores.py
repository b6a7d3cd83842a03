"""Scores of one input: floors beside the truth, and guesses against it.

Of several inputs (`kljax.core.inputs.several_of`) each has a kind of its own, and is
scored alone. An input is called by its name in `InputSpec.scored`, which is None where
there is only one.

Letters: M inputs of the victims, those of one upload after those of another.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from kljax import metrics
from kljax.core.folders import optional
from kljax.core.inputs import InputSpec
from kljax.core.types import PyTree
from kljax.data import Dataset, select
from kljax.metrics.kinds import find_kind
from kljax.studies.builder.victims import Victims
from kljax.studies.config import LeakConfig

REFERENCE_SIZE = 1000  # examples of the dataset that floors may draw from

Scores = dict[str, np.ndarray]  # by column, each [M]
Guesses = tuple[list[int], np.ndarray]  # places of truths, and inputs [n, ...]


class Floors(NamedTuple):
    """What is reached without any gradient, for one input of some victims.

    Attributes:
      best: [M] each, by column: what the best floor of each input reaches.
      scores: name -> places of the inputs that have it, and their scores.
    """

    best: Scores
    scores: dict[str, tuple[list[int], Scores]]


FloorsOfInputs = dict[str | None, Floors]  # by name of the input


def flatten(values: np.ndarray) -> np.ndarray:
    """Lists what each example has: [N, B, ...] becomes [N * B, ...]."""
    return values.reshape(-1, *values.shape[2:])


def make_references(dataset: Dataset, seed: int) -> dict[str | None, Any]:
    """Samples what of each input is known to the attacker, to make floors of."""
    # Another seed than the victims', who would otherwise all be part of it.
    chosen = select(dataset, min(REFERENCE_SIZE, len(dataset)), seed + 1)
    inputs, labels = dataset.fetch(chosen)
    classes = _classes(dataset, labels, chosen)
    spec = dataset.input_spec
    return {
        name: find_kind(one).reference(
            spec.input_of(inputs, name), classes, chosen, one
        )
        for name, one in spec.scored.items()
    }


def floor_images(
    dataset: Dataset,
    images: ArrayLike,
    labels: ArrayLike,
    indices: ArrayLike,
    seed: int,
    input_name: str | None = None,
) -> list[dict[str, np.ndarray]]:
    """Makes the floors of some examples, as they are scored.

    Args:
      dataset: of the study.
      images: [N, H, W, C] in [0, 1], of the victims; of several inputs, those of one.
      labels: [N] of them.
      indices: [N], where they are in `dataset`.
      seed: of the study.
      input_name: of several inputs, which `images` are; None for the primary one.

    Returns:
      For each example name -> image [H, W, C], see `kljax.metrics.floors`, or what
      inputs of another kind have (`kljax.metrics.kinds`); a floor is missing where
      there is no other example to make it of.

    Raises:
      ValueError: for an image of another shape than the dataset's, or that is not
        the one of its index, and for an input that the dataset has not.
    """
    name = dataset.input_spec.primary if input_name is None else input_name
    specs = dataset.input_spec.scored
    if name not in specs:
        raise ValueError(
            f"dataset {dataset.name!r} has no input {name!r}; it has "
            f"{', '.join(map(str, specs)) if None not in specs else 'a single one'}"
        )
    reference = make_references(dataset, seed)[name]
    classes = _classes(dataset, labels, indices)
    return _make_floors(images, classes, indices, reference, seed, specs[name])


def score_floors(
    dataset: Dataset,
    victims: Victims,
    config: LeakConfig,
    references: dict[str | None, Any],
) -> FloorsOfInputs:
    """Makes and scores the floors of each input of some victims."""
    labels, indices = map(flatten, (victims.labels, victims.indices))
    classes = _classes(dataset, labels, indices)
    found = {}
    for name, spec in dataset.input_spec.scored.items():
        truths = flatten(dataset.input_spec.input_of(victims.inputs, name))
        made = _make_floors(
            truths, classes, indices, references[name], config.seed, spec
        )
        kind, sets = find_kind(spec), {}
        for floor in kind.floors:
            # An image of which there is no other of its class lacks some.
            having = [place for place, floors in enumerate(made) if floor in floors]
            if having:
                sets[floor] = having, np.stack([made[place][floor] for place in having])
        metrics_of_own = own_metrics(dataset.input_spec, config, name)
        scored = score_sets([*sets.values()], truths, spec, metrics_of_own)
        pairs = zip(sets.items(), scored, strict=True)
        scores = {floor: (having, its) for (floor, (having, _)), its in pairs}
        found[name] = Floors(kind.best_floors(truths, made, scores), scores)
    return found


def own_metrics(
    inputs: InputSpec, config: LeakConfig, name: str | None
) -> tuple[metrics.Metric, ...]:
    """Finds the user's metrics of an input; of several, those are of the primary."""
    return metrics.find_metrics(config.metrics) if name == inputs.primary else ()


def score_sets(
    sets: list[Guesses],
    truths: np.ndarray,
    spec: InputSpec,
    own: tuple[metrics.Metric, ...] = (),
) -> list[Scores]:
    """Scores sets of guesses against their truths, all in one table.

    Args:
      sets: of guesses.
      truths: [M, ...] of the input.
      spec: of the input.
      own: the user's metrics.
    """
    guesses = np.concatenate([images for _, images in sets])
    truths = np.concatenate([truths[places] for places, _ in sets])
    table = find_kind(spec).score(guesses, truths, spec)
    for metric in own:
        with optional(f"metric {metric.column.name!r}"):
            table[metric.column.name] = metrics.score_pairs(metric, guesses, truths)
    ends = np.cumsum([len(places) for places, _ in sets])[:-1]
    split = {name: np.split(values, ends) for name, values in table.items()}
    return [{name: split[name][n] for name in split} for n in range(len(sets))]


def _classes(dataset: Dataset, labels: PyTree, indices: ArrayLike) -> np.ndarray:
    """Gives the class [n] of targets [n, ...]; without classes each is its own."""
    class_of = dataset.target_spec.class_of
    return indices if class_of is None else class_of(labels)


def _make_floors(
    inputs: ArrayLike,
    classes: ArrayLike,
    indices: ArrayLike,
    reference: Any,
    seed: int,
    spec: InputSpec,
) -> list[dict[str, np.ndarray]]:
    make = find_kind(spec).make_floors
    return [
        make(one, label, index, reference, seed)
        for one, label, index in zip(inputs, classes, indices, strict=True)
    ]
