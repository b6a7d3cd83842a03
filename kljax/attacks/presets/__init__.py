"""Presets: a paper's attack as a composition, with the paper's values.

A preset is a function ``(Setting, optimiser=None, *, steps, restarts) -> Attack``; an
`optimiser` given replaces the paper's. The label strategy comes with the threat model;
`Preset.labels` is the one the attack is known for.
"""

from kljax.attacks.presets.catalogue import PRESETS, Preset, find_preset, of_user
from kljax.attacks.presets.federated import fedavg_inversion, ig_fedavg
from kljax.attacks.presets.generative import (
    deep_image_prior,
    ggl,
    gi_nas,
    grnn,
)
from kljax.attacks.presets.inverters import learn_inverter, learned
from kljax.attacks.presets.noise_density import likelihood, negative_log_likelihood
from kljax.attacks.presets.partial import fedleak
from kljax.attacks.presets.peeling import peeled_image
from kljax.attacks.presets.plain import dlg, gradient_matching, matching, tag
from kljax.attacks.presets.signed import inverting_gradients
from kljax.attacks.presets.spans_of_text import dager
from kljax.attacks.presets.staged_latents import gias, gifd
from kljax.attacks.presets.statistical import bn_updates, gradinversion
from kljax.attacks.presets.surrogate import sme
from kljax.attacks.presets.tabular import tableak
from kljax.attacks.presets.text import lamp
from kljax.attacks.presets.unknown_gates import gate_regression
from kljax.attacks.presets.vision_transformers import april, april_optimisation

__all__ = [
    "PRESETS",
    "Preset",
    "find_preset",
    "of_user",
    "april",
    "dager",
    "april_optimisation",
    "dlg",
    "gate_regression",
    "tag",
    "fedavg_inversion",
    "fedleak",
    "ig_fedavg",
    "inverting_gradients",
    "grnn",
    "deep_image_prior",
    "gi_nas",
    "ggl",
    "gias",
    "gifd",
    "gradinversion",
    "bn_updates",
    "gradient_matching",
    "lamp",
    "learn_inverter",
    "learned",
    "likelihood",
    "matching",
    "negative_log_likelihood",
    "peeled_image",
    "sme",
    "tableak",
]
