"""Catches what presets are composed of, before it runs."""

import contextlib
import importlib
import inspect
from unittest import mock

import optax
from toys import threat
from victims import ground

from kljax.attacks import Protocol
from kljax.attacks.drivers import descend
from kljax.attacks.presets import PRESETS

MODULES = [
    importlib.import_module(f"kljax.attacks.presets.{name}")
    for name in (
        "federated",
        "unknown_gates",
        "generative",
        "plain",
        "signed",
        "statistical",
        "surrogate",
    )
]
STEPS = 400
SEEN = {"labels": "known", "stats": "visible", "victim_norm": "train"}


def here(**changes):
    declared = threat("unit", "given", examples=2, **SEEN, attacker_norm="train")
    return ground(declared, **changes)


def of_two_epochs(**changes):
    """Two images twice through, one at a time."""
    facts = SEEN | {"attacker_norm": "train", "upload": "update"}
    declared = threat("unit", "given", examples=2, **facts)
    return ground(declared, protocol=Protocol(optax.sgd(0.1), 4, 1, 0.1), **changes)


def parts_of(name, setting=None, restarts=1, **options):
    """Catches what a preset hands to the driver, {name of the argument: value}."""
    caught = []
    signature = inspect.signature(descend)

    def catch(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        caught.append(bound.arguments)
        return descend(*args, **kwargs)

    with contextlib.ExitStack() as stack:
        for module in MODULES:
            stack.enter_context(mock.patch.object(module, "descend", catch))
        build = PRESETS[name].build
        build(setting or here(), steps=STEPS, restarts=restarts, **options)
    (parts,) = caught
    return parts
