"""Closed-form attacks: no loop of descent, but a formula or least squares."""

from kljax.attacks.closed_form.bottleneck import bottleneck_noise
from kljax.attacks.closed_form.dense import (
    dense_input,
    dense_layer,
    private_key_from_lock_grads,
)
from kljax.attacks.closed_form.features import Features, classifier_inputs
from kljax.attacks.closed_form.gate_peeling import Peeled, peeling, pooled_gates
from kljax.attacks.closed_form.imprint_reading import (
    binned,
    expected_singletons,
    imprint,
)
from kljax.attacks.closed_form.recursion import rgap
from kljax.attacks.closed_form.relu_batches import spear
from kljax.attacks.closed_form.sentence_gates import sentence_peeling
from kljax.attacks.closed_form.transformer import (
    Transformer,
    missing_paths,
    patch_peeling,
)

__all__ = [
    "bottleneck_noise",
    "dense_input",
    "dense_layer",
    "private_key_from_lock_grads",
    "Features",
    "classifier_inputs",
    "binned",
    "expected_singletons",
    "imprint",
    "Peeled",
    "peeling",
    "pooled_gates",
    "rgap",
    "spear",
    "sentence_peeling",
    "Transformer",
    "missing_paths",
    "patch_peeling",
]
