"""The victims of a study: whose uploads are attacked, and what they train on."""

from typing import NamedTuple

import jax
import numpy as np

from kljax import data
from kljax.core.denoiser import Denoiser
from kljax.core.generator import Generator
from kljax.core.memory import check_fits
from kljax.core.types import PyTree
from kljax.metrics.image import SSIM_WINDOW
from kljax.studies.builder import task
from kljax.studies.builder.generator import private_rows
from kljax.studies.config import LeakConfig


class Victims(NamedTuple):
    """The private data under attack, one upload's worth per victim."""

    indices: np.ndarray  # [N, B] in the dataset of the study
    inputs: PyTree  # [N, B, H, W, C] of images in [0, 1], or others
    labels: np.ndarray  # [N, B] int32, or other targets as the dataset has them
    groups: np.ndarray  # [N] bootstrap clusters, see `data.Dataset.clusters_of`
    uploads: np.ndarray  # [N] numbers of the uploads in the study, from 0
    # Of what each client has sent before: inputs and labels [N, t, B, ...]
    before: tuple[np.ndarray, ...] = ()


def load_victim_data(config: LeakConfig) -> data.Dataset:
    """Loads the dataset that victims are drawn from; see `task.load_dataset`."""
    dataset = task.load_dataset(config, config.split)
    for name, spec in dataset.input_spec.scored.items():
        if spec.kind == "image" and min(spec.shape[:2]) < SSIM_WINDOW:
            of_input = "" if name is None else f" in its input {name!r}"
            raise ValueError(
                f"dataset {config.data!r} has images of shape {spec.shape}{of_input}; "
                f"SSIM needs sides of at least {SSIM_WINDOW}"
            )
    return dataset


def choose_victims(
    config: LeakConfig, dataset: data.Dataset, *trained: Generator | Denoiser | None
) -> tuple[Victims, np.ndarray]:
    """Draws the victims: the first n of more victims are the n of fewer.

    What they have sent before is the last of the same order, so that the first n of
    more victims have the past of n of fewer.

    Args:
      config: the study.
      dataset: that they are drawn from.
      trained: what the attacker has learnt; None for nothing. What any was trained on
        is no victim's.

    Returns:
      The victims; and the examples that are nobody's, indices [M] in random order.

    Raises:
      ValueError: for more examples than there are, or than the memory holds.
    """
    private = private_rows(config, dataset, *trained)
    there = len(dataset) if private is None else int(private.sum())
    each = config.victim_examples
    wanted = config.victims * each
    if wanted > there:
        learnt = [type(one).__name__.lower() for one in trained if one is not None]
        unseen = f" that its {' or '.join(learnt)} has not seen"
        unseen = "" if private is None else unseen
        several = config.average_clients
        clients = "" if several is None else f"average_clients={several}, each "
        raise ValueError(
            f"victims={config.victims} of {clients}examples={config.examples} are "
            f"{wanted} inputs, and dataset {dataset.name!r} has {there}{unseen}: ask "
            "for fewer"
        )
    one = 4 * dataset.input_spec.entries
    check_fits(wanted * one, f"{wanted} inputs", "victims, examples or image_size")
    earlier = wanted * config.earlier
    if wanted + earlier > there:
        raise ValueError(
            f"earlier={config.earlier} uploads of {config.victims} victims take "
            f"{earlier} examples beside the {wanted} under attack, and dataset "
            f"{dataset.name!r} has {there}: ask for fewer"
        )
    check_fits(earlier * one, f"{earlier} inputs", "earlier or victims")
    order = data.select(dataset, len(dataset), config.seed)
    order = order if private is None else order[private[order]]
    shape, before = (config.victims, each), ()
    if earlier:
        past = config.victims, config.earlier, config.examples
        before = _fetch(dataset, order[::-1][:earlier].reshape(past))
    indices = order[:wanted].reshape(shape)
    victims = Victims(
        indices,
        *_fetch(dataset, indices),
        dataset.clusters_of(indices),
        np.arange(config.victims),
        before,
    )
    return victims, order[wanted : there - earlier]


def _fetch(dataset: data.Dataset, indices: np.ndarray) -> tuple[np.ndarray, ...]:
    """Reads inputs and labels [...] at indices [...]."""
    return jax.tree.map(
        lambda x: x.reshape(*indices.shape, *x.shape[1:]),
        task.fetch_examples(dataset, indices.ravel()),
    )
