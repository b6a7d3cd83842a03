"""Defences: what a client does to keep its data to itself."""

from kljax.core.checks import is_concrete
from kljax.defences.ats import read_policies, transform_images, write_policies
from kljax.defences.ats_search import accuracy_score, privacy_score, search_policies
from kljax.defences.clipping import example_clipping, norm_clipping
from kljax.defences.combination import chain
from kljax.defences.cvb import convolutional_bottleneck
from kljax.defences.dcs import conceal_samples
from kljax.defences.defence import (
    SEND_ALL,
    Context,
    Defence,
    Mechanism,
    Transform,
    as_given,
    as_sent,
    at_update,
    changes_gradients,
    everything,
    inserts_modules,
    none,
    step_transform,
    without_changes,
    without_release,
)
from kljax.defences.feature_pruning import soteria
from kljax.defences.fedbn import private_norms
from kljax.defences.fedpass import gates_by_passports
from kljax.defences.locked import gates_of, keylock, plaintext_gates, unit_gates
from kljax.defences.mixing import insta_hide, insta_hide_cross, mix_up
from kljax.defences.noise import gaussian_noise, laplace_noise
from kljax.defences.obscured import obscure_inputs
from kljax.defences.orthogonal import censor
from kljax.defences.precode import dense_bottleneck
from kljax.defences.private_sgd import dp_fedavg, dp_sgd, pre_clip_noise
from kljax.defences.pruning import magnitude_pruning
from kljax.defences.quantisation import quantise, quantise_mixed
from kljax.defences.refined import refine_inputs
from kljax.defences.scheduled import outpost
from kljax.defences.selective import selective_encryption
from kljax.defences.slices import slice_noise
from kljax.defences.sparsification import top_k
from kljax.defences.stand_in import adam_stand_in
from kljax.defences.truncation import svd_truncation

__all__ = [
    "Defence",
    "Context",
    "Transform",
    "Mechanism",
    "SEND_ALL",
    "as_sent",
    "as_given",
    "everything",
    "is_concrete",
    "none",
    "keylock",
    "plaintext_gates",
    "unit_gates",
    "gates_of",
    "gaussian_noise",
    "laplace_noise",
    "magnitude_pruning",
    "norm_clipping",
    "example_clipping",
    "pre_clip_noise",
    "dp_sgd",
    "dp_fedavg",
    "adam_stand_in",
    "top_k",
    "quantise",
    "quantise_mixed",
    "censor",
    "soteria",
    "outpost",
    "slice_noise",
    "svd_truncation",
    "obscure_inputs",
    "refine_inputs",
    "conceal_samples",
    "mix_up",
    "insta_hide",
    "insta_hide_cross",
    "transform_images",
    "read_policies",
    "write_policies",
    "privacy_score",
    "accuracy_score",
    "search_policies",
    "selective_encryption",
    "dense_bottleneck",
    "private_norms",
    "gates_by_passports",
    "convolutional_bottleneck",
    "inserts_modules",
    "changes_gradients",
    "chain",
    "at_update",
    "step_transform",
    "without_changes",
    "without_release",
]
