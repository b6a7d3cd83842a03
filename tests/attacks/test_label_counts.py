"""Counts of labels before they are rounded: rounding hides a wrong formula."""

import dataclasses
import functools
import importlib
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_label_rules import LABEL_SETS, SHAPE, STEPS, client
from toys import quick_jit

from kljax.attacks import UNKNOWN
from kljax.attacks.labels import counts, counts_bias
from kljax.core.randomness import fixed_rng

MODULE = importlib.import_module("kljax.attacks.labels.label_counts")
RATE, EXAMPLES, SAMPLES = 0.05, 8, 230  # rounded up to 300


def estimated(rule, here, view, **options):
    """Catches what is rounded [Kc]."""
    seen = []

    def catch(found, examples):
        assert examples == here.threat.knowledge.examples
        seen.append(found)
        return jnp.zeros(examples, jnp.int32)

    def run(view):
        with mock.patch.object(MODULE, "labels_of_counts", catch):
            rule(here, view, **options)
        return seen.pop()

    return np.asarray(quick_jit(run)(view))


def on_noise(here, view, params):
    """Mean softmax, and mean sum of the features, over three hundred inputs."""
    apply = quick_jit(
        functools.partial(here.task.model.apply, taps=("fc:input",), train=True)
    )
    softmax, sums = [], []
    for chunk in range(3):
        draw = jax.random.fold_in(fixed_rng("label counts"), chunk)
        out = apply(params, view.stats, jax.random.normal(draw, (100, *SHAPE)))
        scores = np.exp(np.asarray(out.logits, float))
        softmax.append(np.mean(scores / scores.sum(axis=1, keepdims=True), axis=0))
        sums.append(np.mean(np.sum(out.taps["fc:input"], axis=1)))
    return np.mean(softmax, axis=0), np.mean(sums)


@pytest.mark.parametrize("at", ["start", "end", "interpolated"])
@pytest.mark.parametrize("rule", [counts, counts_bias])
def test_an_estimate_is_the_papers(rule, at):
    """Dimitrov et al., restore_labels: n p - n dW / O, averaged over the states.

    The gradient is the update over minus rate and steps. By the bias O is 1.
    """
    here, view = client(LABEL_SETS[2], RATE)
    learned = {k: w + view.grads.model[k] for k, w in view.public.model.items()}
    states = [on_noise(here, view, p) for p in (view.public.model, learned)]
    share = {"start": [0], "end": [1], "interpolated": np.arange(STEPS) / STEPS}[at]
    if rule is counts:
        gradient = np.sum(view.grads.model["fc/kernel"], axis=0, dtype=float)
    else:
        gradient = np.asarray(view.grads.model["fc/bias"], float)
    gradient = gradient / (-RATE * STEPS)
    expected = np.zeros(len(gradient))
    for t in share:
        softmax, size = (
            (1 - t) * a + t * b for a, b in zip(states[0], states[1], strict=True)
        )
        size = size if rule is counts else 1.0
        expected += EXAMPLES * (softmax - gradient / size) / len(share)
    found = estimated(rule, here, view, samples=SAMPLES, at=at)
    np.testing.assert_allclose(found, expected, atol=2e-3)
    # A thousandth of what there is to be told.
    assert np.ptp(expected) > 2


def test_a_gradient_has_one_state_only():
    here, view = client(LABEL_SETS[2], RATE)
    knowledge = dataclasses.replace(here.threat.knowledge, upload="gradient")
    declared = dataclasses.replace(here.threat, knowledge=knowledge)
    alone = here._replace(threat=declared, protocol=None)
    softmax, size = on_noise(here, view, view.public.model)
    gradient = np.sum(view.grads.model["fc/kernel"], axis=0)
    expected = EXAMPLES * (softmax - gradient / size)
    for at in ("start", "end", "interpolated"):
        found = estimated(counts, alone, view, samples=SAMPLES, at=at)
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_paper_estimates_on_three_thousand():
    """-label_samp of eth-sri/fedavg_leakage, and its interpolation over the steps."""
    assert counts.__kwdefaults__ == {"samples": 3000, "at": "interpolated"}
    assert counts_bias.__kwdefaults__ == counts.__kwdefaults__


def test_a_network_that_says_nothing_on_noise_has_no_counts():
    """Its softmax is NaN; the bias gradient, all else that is read, is as it was."""
    here, view = client(LABEL_SETS[2], RATE)
    read = quick_jit(functools.partial(counts_bias, here, samples=100, at="start"))
    assert np.all(read(view) >= 0)
    names = [name for name in view.public.model if not name.startswith("fc/")]
    broken = {name: np.full_like(view.public.model[name], np.nan) for name in names}
    public = view.public._replace(model=view.public.model | broken)
    assert np.all(read(view._replace(public=public)) == UNKNOWN)
