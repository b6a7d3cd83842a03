"""What an attacker learns before it sees an upload: once of each arm.

The attacker simulates clients of its own on public examples, none of which is a
victim's. They have the weights that the server has published, which all victims share,
and the defence in force, and draw for themselves whatever a client draws.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kljax import data, threat
from kljax.attacks import Setting
from kljax.attacks.presets import Preset
from kljax.core.types import Array, PyTree, Rng
from kljax.defences.arms import Arm
from kljax.parallel import Timing
from kljax.studies.builder.attack_options import parse_options
from kljax.studies.builder.attacker import understood
from kljax.studies.builder.drawn_client import (
    Client,
    Source,
    draw_rng,
    of_all_victims,
)
from kljax.studies.builder.generator import base_name
from kljax.studies.builder.task import fetch_examples, load_dataset
from kljax.studies.builder.victims import Victims
from kljax.studies.config import LeakConfig

SHARE = 0.75  # of a dataset that is public; victims are of the rest
HELD_OUT = 0.1  # of the public examples, from which nothing is learned


class PublicExamples(NamedTuple):
    """Examples that an attacker has, by part: ``training`` and ``validation``.

    Attributes:
      indices: part -> [n] in the dataset, which is the victims' or another.
      inputs: part -> [n, ...].
      labels: part -> [n], or other targets as the dataset has them.
    """

    indices: dict[str, np.ndarray]
    inputs: dict[str, PyTree]
    labels: dict[str, np.ndarray]


def choose_public(
    config: LeakConfig,
    preset: Preset,
    dataset: data.Dataset,
    victims: Victims,
    others: np.ndarray | None,
) -> PublicExamples | None:
    """Chooses what an attacker learns from, if its attack learns.

    Of the order that victims are the first of it is the last three quarters, so that
    more victims change nothing of it; or it is all of another dataset.

    Args:
      config, preset: of the study.
      dataset: that victims are drawn from.
      victims: of the study.
      others: indices of the examples that are nobody's, in random order; None for a
        run.

    Raises:
      ValueError: for a study that such an attack cannot be for, and for
        more victims than leave enough examples.
    """
    if preset.learn is None:
        if config.public_data is not None:
            raise ValueError(
                f"public_data={config.public_data!r} is for an attack that learns, and "
                f"{config.attack!r} does not: leave it out"
            )
        return None
    check_learning(config)
    if config.public_data is not None:
        dataset = _load_other(config, dataset)
        public = data.select(dataset, len(dataset), config.seed)
    else:
        there = len(others) + config.victims * config.victim_examples
        count = int(SHARE * there)
        if count > len(others):
            raise ValueError(
                f"attack {config.attack!r} learns from {count} public examples of "
                f"dataset {dataset.name!r}, and {config.victims} victims of "
                f"{config.victim_examples} examples leave {len(others)} of {there}"
            )
        public = others[-count:]
        require_disjoint(public, victims.indices)
    count = len(public)
    held_out = max(int(HELD_OUT * count), config.victim_examples)
    if count - held_out < config.victim_examples:
        raise ValueError(
            f"attack {config.attack!r} learns from batches of {config.victim_examples} "
            f"examples, and dataset {dataset.name!r} has {count} public ones"
        )
    parts = {"training": public[:-held_out], "validation": public[-held_out:]}
    fetched = {part: fetch_examples(dataset, own) for part, own in parts.items()}
    return PublicExamples(
        parts,
        {part: inputs for part, (inputs, _) in fetched.items()},
        {part: labels for part, (_, labels) in fetched.items()},
    )


def _load_other(config: LeakConfig, own: data.Dataset) -> data.Dataset:
    """Loads the dataset that is learned from in place of the victims' own.

    Raises:
      ValueError: for the victims' own, and for another kind of examples.
    """
    if base_name(config.public_data) == base_name(config.data):
        raise ValueError(
            f"public_data={config.public_data!r} is the dataset of the victims: leave "
            "it out, and examples of it are learned from that are no victim's"
        )
    named = {"data": config.public_data, "split": None}
    other = load_dataset(dataclasses.replace(config, **named), None)
    if other.shape != own.shape or other.num_classes != own.num_classes:
        raise ValueError(
            f"public_data={config.public_data!r} has images {other.shape} of "
            f"{other.num_classes} classes, and {config.data!r} has {own.shape} of "
            f"{own.num_classes}: take one with the same"
        )
    return other


def require_disjoint(public: np.ndarray, private: np.ndarray) -> None:
    """Refuses public examples among which is a victim's.

    Raises:
      ValueError: with the first index that is both.
    """
    both = np.intersect1d(public, private)
    if len(both):
        raise ValueError(f"example {both[0]} is public, and a victim's: it is one only")


def list_known_parts(model: threat.ThreatModel) -> tuple[str, ...]:
    """Names the parts of a defence that one attacker has learned about all victims.

    They are the same for all of them: what the server publishes, and what else of a
    defence the threat model grants.
    """
    knows = model.knowledge
    weights = () if knows.lock_weights == "hidden" else ("lock_weights",)
    return ("public", *weights, *(("private_key",) * (knows.private_key == "known")))


def make_learning(
    config: LeakConfig, preset: Preset, arm: Arm, setting: Setting, client: Client
) -> Callable[..., PyTree]:
    """Makes the function that learns what there is to learn of an arm.

    Args:
      config, preset: of the study.
      arm: of any numbers: those of one are data.
      setting: of the attack on it.
      client: of the arm.

    Returns:
      ``(Source of a victim, options of the arm, inputs, labels) -> tree``, see
      `PublicExamples` for the last two. Of the source only what all victims share is
      used.

    Raises:
      ValueError: for an attacker who does not know the defence.
    """
    if arm.release_strategy in ("unaware", "estimate"):
        known = arm.name.removesuffix(f"/{arm.release_strategy}")
        raise ValueError(
            f"arm {arm.name!r}: attack {config.attack!r} learns under the defence in "
            f"force: write {known!r}"
        )
    options = parse_options(config.attack_options, config.attack, preset)

    def learn(source: Source, numbers: tuple[Array, ...], inputs: dict, labels: dict):
        defence = arm.make(numbers)
        source = of_all_victims(source)
        network = client.draws[0](source)

        def draw_upload(rng: Rng, part: str) -> tuple[threat.View, PyTree]:
            rng_examples, rng_client = jax.random.split(rng)
            chosen = draw_distinct(
                rng_examples, config.victim_examples, len(labels[part])
            )
            images = jax.tree.map(lambda x: x[chosen], inputs[part])
            own = source._replace(rng_data=jax.random.key_data(rng_client))
            held = client.draw_held(own, source, network)
            update = client.upload(
                draw_rng(own, "step"),
                defence,
                network,
                held,
                images,
                labels[part][chosen],
            )
            seen = threat.observe(setting.threat, update)
            return understood(arm, defence, seen), images

        return preset.learn(
            setting,
            draw_upload,
            draw_rng(source, "learning"),
            steps=config.steps,
            restarts=config.restarts,
            **options,
        )

    return learn


def run_learning(
    learn: Callable[..., PyTree], config: LeakConfig, *given: PyTree
) -> tuple[PyTree, Timing]:
    """Compiles and runs the learning of an arm, and times both."""
    start = time.perf_counter()
    with jax.default_matmul_precision(config.precision):
        compiled = learn.lower(*given).compile()
        between = time.perf_counter()
        found = jax.block_until_ready(compiled(*given))
    return found, Timing(between - start, time.perf_counter() - between, 1)


def draw_distinct(rng: Rng, count: int, most: int) -> Array:
    """Draws numbers [count] int32 below `most`, all different, each set equally often.

    One after another is drawn among those that are left, without a permutation of all.
    """
    drawn = jnp.zeros(0, jnp.int32)
    for i, own in enumerate(jax.random.split(rng, count)):
        number = jax.random.randint(own, (), 0, most - i)
        # The number-th of those that are left: past each smaller one that is gone.
        for gone in jnp.sort(drawn):
            number = number + (number >= gone)
        drawn = jnp.append(drawn, number)
    return drawn


def check_learning(config: LeakConfig) -> None:
    """Refuses a study whose victims have not one network, or whose upload is another.

    Raises:
      ValueError: with the option, and what would be right.
    """
    name = f"attack {config.attack!r} learns once, for all victims of an arm"
    if config.from_run is not None:
        raise ValueError(
            f"{name}, and clients of a run are not simulated yet: leave from_run out"
        )
    if config.weights != "shared":
        raise ValueError(
            f"{name}, and weights={config.weights!r} gives each a network of its own: "
            "write weights='shared'"
        )
    if config.earlier or config.observations > 1:
        raise ValueError(
            f"{name}, from single uploads: leave earlier and observations out"
        )
