"""Pairing: whether a training is of the very network that was attacked.

Two configurations are of the same network if they agree in every field that is not
listed here as saying nothing of it; so a field that comes later separates until it is.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any

from kljax.defences.arms import KINDS
from kljax.studies.config import SPEED_OPTIONS, LeakConfig, TrainConfig
from kljax.studies.config.leak import weights_limit, weights_limit_of

# What neither says of a network: which of its defences, which repetition, where.
NEITHER = frozenset(
    {
        "arms",
        "seed",
        "delta",  # what an epsilon is said at
        "data_dir",
        *SPEED_OPTIONS,
        # What files say besides the configuration.
        "schema_version",
        "job",
        "data_licence",
        "device",
        "local_devices",
        "python",
        "versions",
    }
)
# How a network is attacked, on which examples.
OF_ATTACK = frozenset(
    {
        "attack",
        "attack_options",
        "generator",
        "denoise",
        "public_data",
        "optimiser",
        "step_size",
        "labels",
        "label_rule",
        "features",
        "threat",
        "victims",
        "examples",
        "average_clients",
        "restarts",
        "steps",
        "weights",
        "classifier",
        "split",
        "from_run",
        "round",
        "client",
        "upload",
        "local_steps",
        "local_epochs",
        "batch",
        "client_optimiser",
        "metrics",
        "earlier",
        "risk",
        "observations",
        "pooling",
        "snapshots",
    }
)
# How it is trained, on which examples. Not what changes a client's gradient at the same
# weights and examples, such as a normalisation.
OF_TRAINING = frozenset(
    {
        "clients",
        "cohort",
        "rounds",
        "batch",
        "local_epochs",
        "local_steps",
        "partition",
        "optimiser",
        "learning_rate",
        "momentum",
        "nesterov",
        "weight_decay",
        "drops",
        "drop_factor",
        "server_optimiser",
        "server_learning_rate",
        "server_momentum",
        "aggregator",
        "encryption",
        "roles",
        "trigger",
        "hardening",
        "reject_below",
        "target_class",
        "poisoned",
        "floor",
        "proximal",
        "weighting",
        "reset_optimiser",
        "on_nonfinite",
        "examples",
        "test_examples",
        "public_examples",
        "train_split",
        "test_split",
        "fresh_private_keys",
        "evaluate_every",
        "save_every",
        "keep_rounds",
    }
)
# What makes gates, and says nothing of an arm without; sites say where its norm is.
OF_GATES = frozenset({"lock_init", "lock_activation", "private_key_size", "chained"})
# What a training measures and keeps, and does not depend on.
KEPT = frozenset({"evaluate_every", "save_every", "keep_rounds"})


def is_gated(arm: str) -> bool:
    """Tells whether an arm, as it is written, may have gates; a user's own may."""
    name = re.split(r"[+=@/]", arm, maxsplit=1)[0]
    return name not in KINDS or KINDS[name].gated


def network_differences(
    attacked: Mapping[str, Any],
    trained: Mapping[str, Any],
    gated: bool = True,
    kind: str | None = None,
) -> list[str]:
    """Lists where an attacked network and a trained one are not the same.

    A field that one of them lacks is at its default there.

    Args:
      attacked: configuration of a cell, as JSON has it.
      trained: configuration of a run, as JSON has it.
      gated: whether the arm has gates, see `is_gated`.
      kind: of the inputs that were attacked, as rows say it; None where that is not
        known, and then an `init` that follows from the data is no difference.

    Returns:
      Of each field that differs, its name and both values in words.
    """
    neither = NEITHER if gated else NEITHER | OF_GATES
    left = {k: v for k, v in attacked.items() if k not in neither | OF_ATTACK}
    right = {k: v for k, v in trained.items() if k not in neither | OF_TRAINING}
    differences = []
    for name in dict.fromkeys((*left, *right)):
        # A study is older than options that it does not have.
        here = left[name] if name in left else _default(LeakConfig, TrainConfig, name)
        there = (
            right[name] if name in right else _default(TrainConfig, LeakConfig, name)
        )
        if name == "init" and here is None:  # whatever suits the network
            names = (attacked.get(field, "") for field in ("model", "data"))
            here = weights_limit(*names)
            if here is None:  # whatever suits the data
                here = there if kind is None else weights_limit_of(kind)
        if here != there:
            differences.append(f"{name} is {here!r} attacked and {there!r} trained")
    return differences


def _default(kind: type, other: type, name: str) -> Any:
    """Looks up a default, as JSON has it: of the one class, or else of the other."""
    defaults = {
        field.name: field.default
        for config_class in (other, kind)
        for field in dataclasses.fields(config_class)
        if field.default is not dataclasses.MISSING
    }
    return json.loads(json.dumps(defaults.get(name, "not known")))


def training_of(config: Mapping[str, Any]) -> str:
    """Writes what two trainings share that differ in their seed alone."""
    shared = {k: v for k, v in config.items() if k not in NEITHER | KEPT}
    return json.dumps(shared, sort_keys=True)
