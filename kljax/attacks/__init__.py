"""Attacks: what a server can make of a gradient, or of a whole update."""

from kljax.attacks.attack import (
    RESTARTS,
    Attack,
    Candidate,
    Evolution,
    Objective,
    Optimiser,
    Reconstruction,
    Unknown,
    Unknowns,
    no_prior,
)
from kljax.attacks.closed_form import (
    Peeled,
    Transformer,
    classifier_inputs,
    dense_input,
    dense_layer,
    imprint,
    patch_peeling,
    peeling,
    pooled_gates,
    private_key_from_lock_grads,
    rgap,
    sentence_peeling,
    spear,
)
from kljax.attacks.drivers import descend, evolve
from kljax.attacks.insertions import Insertion
from kljax.attacks.labels import (
    LABELS,
    RULES,
    find_rule,
    idlg,
    rule_holds,
    targets_of,
)
from kljax.attacks.objectives import OBJECTIVES, cosine, squared_l2
from kljax.attacks.optimisers import adam, cma_es, from_optax, lbfgs, lbfgs_torch
from kljax.attacks.pooling import pooled
from kljax.attacks.priors import feature, scheduled, total_variation
from kljax.attacks.secrets import SECRETS, Secret, live_channels, secret_of
from kljax.attacks.setting import (
    AssumedDefence,
    Attacker,
    Protocol,
    Setting,
    Task,
)
from kljax.attacks.simulation import fedavg, local_steps, one_step, replay
from kljax.attacks.starts import around, constant, normal
from kljax.attacks.unknowns import boxed, decoded, searched, upsampled
from kljax.core.targets import UNKNOWN

__all__ = [
    "Attack",
    "Reconstruction",
    "Setting",
    "Task",
    "AssumedDefence",
    "Attacker",
    "Protocol",
    "descend",
    "evolve",
    "RESTARTS",
    "Unknown",
    "Unknowns",
    "Candidate",
    "searched",
    "boxed",
    "decoded",
    "upsampled",
    "normal",
    "constant",
    "around",
    "LABELS",
    "RULES",
    "idlg",
    "find_rule",
    "rule_holds",
    "targets_of",
    "UNKNOWN",
    "SECRETS",
    "Secret",
    "secret_of",
    "Peeled",
    "peeling",
    "patch_peeling",
    "sentence_peeling",
    "Transformer",
    "pooled_gates",
    "live_channels",
    "rgap",
    "spear",
    "imprint",
    "Insertion",
    "one_step",
    "local_steps",
    "fedavg",
    "replay",
    "Objective",
    "OBJECTIVES",
    "squared_l2",
    "cosine",
    "no_prior",
    "total_variation",
    "scheduled",
    "feature",
    "pooled",
    "Optimiser",
    "Evolution",
    "from_optax",
    "adam",
    "lbfgs",
    "lbfgs_torch",
    "cma_es",
    "dense_input",
    "classifier_inputs",
    "dense_layer",
    "private_key_from_lock_grads",
]

# Names of before, and where they went.
_MOVED = {
    "iterative": "descend",
    "Lock": "Secret",
    "LOCKS": "SECRETS",
    "lock_of": "secret_of",
}


def __getattr__(name: str):
    if name in _MOVED:
        raise AttributeError(f"kljax.attacks.{name} is kljax.attacks.{_MOVED[name]}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
