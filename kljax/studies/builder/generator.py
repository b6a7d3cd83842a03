"""A study's generator: found by name, and kept away from the victims."""

import numpy as np

from kljax import data
from kljax.core.denoiser import Denoiser
from kljax.core.generator import Generator, check_generator
from kljax.models import decoders
from kljax.studies.builder.trained import Kept, find_trained
from kljax.studies.config import LeakConfig

KEPT = Kept(
    "generator", Generator, decoders.FOLDER, decoders.read_decoder, check_generator
)


def find_generator(config: LeakConfig) -> Generator | None:
    """Finds the generator that a study's attacker has.

    Raises:
      FileNotFoundError: if its file is not there.
      ValueError: for an unknown name, a damaged file, a function of your own that
        gives no `Generator`, and one whose images are not what it says.
    """
    if config.generator is None:
        return None
    return find_trained(config.generator, KEPT)


def private_rows(
    config: LeakConfig, dataset: data.Dataset, *trained: Generator | Denoiser | None
) -> np.ndarray | None:
    """Tells which examples of a dataset can be victims, [n] bool; None for all.

    They are those that nothing `trained`, of the study's attacker, was trained on. Of
    one of your own that does not say, they are all.

    Raises:
      ValueError: if it cannot be told: for a slice of the split, or another version of
        the dataset, that one was trained on.
    """
    private = None
    for one in trained:
        own = _private_rows(config, dataset, one)
        if own is not None:
            private = own if private is None else private & own
    return private


def _private_rows(
    config: LeakConfig, dataset: data.Dataset, trained: Generator | Denoiser | None
) -> np.ndarray | None:
    origin = None if trained is None else trained.origin
    if origin is None or base_name(config.data) != base_name(origin.dataset):
        return None
    split = config.split
    if origin.split is not None:
        split = split or "train"
        # TFDS calls all splits together "all".
        if not {origin.split, "all"} & {*split.replace("[", "+").split("+")}:
            return None
    positions = dataset.positions_of(np.arange(len(dataset)))
    if split != origin.split or positions.max() >= len(origin.public):
        raise ValueError(
            f"the attacker's {type(trained).__name__.lower()} was trained on some of "
            f"the {len(origin.public)} examples of {origin.dataset!r}, split "
            f"{origin.split!r}; which of split={split!r} they are cannot be told: take "
            "that split, or one that has nothing of it"
        )
    return ~origin.public[positions]


def base_name(name: str) -> str:
    """Takes a TFDS name's configuration and version off."""
    return name if name.endswith(".npz") else name.partition("/")[0].partition(":")[0]
