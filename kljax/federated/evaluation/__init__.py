"""How accurate a trained model is: with the right gates, wrong ones, re-fitted ones.

A locked model has no accuracy of its own, only one per way to make its gates. Such a
way is a `GateTest`; `TESTS` is the table of them. Gates are data for the network, so
all tests of all clients run through one compiled function.

Letters: n examples, N public examples that gates are re-fitted on.
"""

from kljax.federated.evaluation.arm import chosen_clients, evaluate, mean_and_std
from kljax.federated.evaluation.correctness import (
    Examples,
    accuracy,
    fedkl_accuracy_factor,
)
from kljax.federated.evaluation.gate_tests import (
    FACTS,
    TESTS,
    GateTest,
    Insider,
    Outsider,
)
from kljax.federated.evaluation.refitting import Refitted, refit
from kljax.federated.evaluation.rejection import rejecting
from kljax.federated.evaluation.triggered import attack_success, triggered_examples

__all__ = [
    "Examples",
    "accuracy",
    "attack_success",
    "triggered_examples",
    "fedkl_accuracy_factor",
    "GateTest",
    "TESTS",
    "FACTS",
    "Insider",
    "Outsider",
    "Refitted",
    "refit",
    "rejecting",
    "evaluate",
    "chosen_clients",
    "mean_and_std",
]
