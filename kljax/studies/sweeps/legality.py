"""Legality: whether what a cell names exists, and whether its attacker can be.

Nothing is loaded, compiled or run for it. What needs the data or the shapes of the
network (sites, the classifier, a run to attack) is checked when its study is built.
"""

import functools
from collections.abc import Iterable

from kljax import data
from kljax.attacks.optimisers import make_optimiser
from kljax.attacks.presets import PRESETS, find_preset
from kljax.core.registry import nearest, resolve
from kljax.data.tfds import list_tfds
from kljax.defences import arms
from kljax.defences.arms import Arm, unplaced_sites
from kljax.models import NETWORKS, losses
from kljax.studies.builder import task
from kljax.studies.builder.attacker import (
    check_density,
    check_labels,
    check_simulated_inputs,
)
from kljax.studies.builder.average import check_average
from kljax.studies.builder.threat_model import INSTEAD, declare_threat
from kljax.studies.config import LeakConfig
from kljax.threat import KNOWLEDGE, LABEL_STRATEGIES, IllegalThreat

FREE = ("visible", *INSTEAD)  # facts that have no list of values, or are options


def is_legal(config: LeakConfig) -> bool:
    """Tells whether the attacker of a cell knows enough for what it does.

    Raises:
      ValueError: for a name that does not exist, with the nearest one that does, and
        for facts that contradict the rest of the configuration.
    """
    _check_names(config)
    try:
        arm, preset = _arm(config), find_preset(config.attack)
        check_average(config, arm, preset)
        check_density(config, arm, preset)
        check_simulated_inputs(config, arm)
        check_labels(config, arm, config.labels or preset.labels)
        declare_threat(config, arm, preset)
    except IllegalThreat:
        return False
    return True


def _check_names(config: LeakConfig) -> None:
    _check_data(config.data, config.data_dir)
    resolve("loss", config.loss, losses.LOSSES)
    resolve("attack", config.attack, PRESETS)
    if config.optimiser is not None:
        make_optimiser(config.optimiser, config.step_size)
    if config.labels is not None:
        _check_known("label strategy", config.labels, LABEL_STRATEGIES)
    facts = [fact.partition("=")[0] for fact in config.threat]
    for fact in config.threat:
        name, equals, value = fact.partition("=")
        # Without a value, or an option: the threat model says what is wrong with it.
        if equals and name not in FREE:
            _check_known("threat fact", name, (*KNOWLEDGE, *FREE))
            _check_known(f"value of threat fact {name}", value, KNOWLEDGE[name])
        if facts.count(name) > 1:
            raise ValueError(f"threat fact {name!r} is stated twice: {config.threat}")


def _check_known(kind: str, name: str, known: Iterable[str]) -> None:
    if name not in known:
        raise ValueError(
            f"unknown {kind} {name!r}{nearest(name, known)}; known: {', '.join(known)}"
        )


def _check_data(name: str, data_dir: str | None) -> None:
    if ":" in name and not data.is_path(name):
        resolve("dataset", name, data.EMBEDDED)
    elif name not in data.EMBEDDED and name.partition("/")[0] not in _listed():
        # A set may have been prepared by code that TFDS does not list.
        _check_loads(name, data_dir, data.stamp(name, data_dir))


@functools.cache
def _listed() -> frozenset[str]:
    return frozenset(list_tfds())


@functools.cache
def _check_loads(name: str, data_dir: str | None, files) -> None:
    del files  # part of the cache's index
    data.load(name, data_dir=data_dir)


def _arm(config: LeakConfig) -> Arm:
    (text,) = config.arms
    if config.from_run is not None:  # the network is the run's
        resolve("model", config.model, NETWORKS)
        arm = arms.parse_arm(text, unplaced_sites(), {})
    else:
        network = task.find_network(config)
        arm = arms.parse_arm(text, unplaced_sites(network.sites), {})
        task.check_norm(config, network, arm)
    arms.check_upload(arm, config.upload)
    return arm
