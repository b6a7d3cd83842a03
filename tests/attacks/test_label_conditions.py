"""Conditions of label rules: said where they fail, and how often each rule is right."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from toys import quick_jit, replace_fields, setting, threat
from victims import digits

from kljax.attacks import UNKNOWN
from kljax.attacks.labels import CONDITIONS, RULES, find_rule, recovered, rule_holds
from kljax.attacks.labels.conditions import few_classes_pull
from kljax.core.inputs import images_of
from kljax.core.types import Public
from kljax.defences import none
from kljax.models import CNN6, from_nnx
from kljax.models.initialisers import uniform
from kljax.models.losses import cross_entropy
from kljax.studies.diagnosis import label_rule_holds
from kljax.threat import View

SHAPE, CLASSES = (8, 8, 1), 10


class Dense(nnx.Module):
    """One hidden layer, and a classifier, with a bias or without."""

    def __init__(self, rngs, activation, bias, classes=CLASSES):
        self.body = nnx.Linear(64, 32, rngs=rngs)
        self.fc = nnx.Linear(32, classes, use_bias=bias, rngs=rngs)
        self.activation = activation

    def __call__(self, images):
        flat = images.reshape(images.shape[0], -1)
        return self.fc(self.activation(self.body(flat)))


@functools.cache
def network(name):
    if name == "cnn6":
        build = functools.partial(
            CNN6, CLASSES, image_shape=SHAPE, initialiser=uniform(0.5)
        )
    elif name.endswith(("output", "outputs")):
        classes = {"one output": 1, "two outputs": 2}[name]
        build = functools.partial(
            Dense, activation=nnx.relu, bias=True, classes=classes
        )
    else:
        kind, _, bias = name.partition(" ")
        activation = {"tanh": nnx.tanh, "relu": nnx.relu}[kind]
        build = functools.partial(Dense, activation=activation, bias=bool(bias))
    return from_nnx(_Built(build))


class _Built:
    """Builds by keyword, as networks are built."""

    def __init__(self, build):
        self.build = build

    def __call__(self, rngs):
        return self.build(rngs=rngs)


def ground(name, examples=1, rule="auto", **changes):
    changes = {"model": network(name), "label_rule": rule} | changes
    return setting(
        threat("unit", examples=examples),
        none(),
        inputs=images_of(SHAPE),
        num_classes=CLASSES,
        sites=(),
        **changes,
    )


def uploads(name, count, examples=1):
    """Draws a network for each of some victims: (views of all gradients, labels)."""
    model = network(name)
    images, targets = digits(count * examples)

    def observed(rng, images, targets):
        params, stats = model.init(rng)

        def loss(params):
            out = model.apply(params, stats, images, train=True)
            return cross_entropy(out.logits, targets)

        grads = Public(jax.grad(loss)(params))
        return View(Public(params), stats, grads, *(5 * [None]))

    rngs = jax.random.split(jax.random.key(0), count)
    cut = [x.reshape(count, examples, *x.shape[1:]) for x in (images, targets)]
    return quick_jit(jax.vmap(observed))(rngs, *cut), np.argmax(cut[1], axis=-1)


@functools.cache
def read(name, count, rule="auto", examples=1):
    """Recovers (labels [N, B], whether the rule's conditions hold [N], true labels)."""
    here = ground(name, examples, rule)
    views, labels = uploads(name, count, examples)

    def both(view):
        return find_rule(here)(here, view), rule_holds(here, view)

    return *map(np.asarray, quick_jit(jax.vmap(both))(views)), labels


def rate(name, count, rule):
    found, _, labels = read(name, count, rule)
    return int(np.sum(found == labels))


def test_every_rule_has_its_conditions():
    assert CONDITIONS.keys() == RULES.keys()
    assert all(condition.text for condition in CONDITIONS.values())


def test_signed_features_without_a_bias_mislead_sums_and_no_signs():
    """The sum of signed features has either sign: idlg is right in 94 of 200."""
    assert 80 <= rate("tanh", 200, "idlg") <= 120
    assert rate("tanh", 200, "opposite_sign") == rate("tanh", 200, "auto") == 200
    assert not np.any(read("tanh", 200, "idlg")[1])
    assert np.all(read("tanh", 200, "auto")[1])


@pytest.mark.slow
def test_a_rule_says_where_saturation_leaves_it_nothing():
    """At weights from U(-.5, .5) CNN6 is saturated: mostly two columns are left.

    In 28 of 100 one column differs from all others, and all of these are right. In
    the rest the sums of leaky features are read, which makes 92 in all.
    """
    found, holds, labels = read("cnn6", 100)
    right = found[:, 0] == labels[:, 0]
    assert rate("cnn6", 100, "idlg") == np.sum(right) >= 80
    assert 0 < np.sum(holds) < 50
    # An upload without a gradient has no label, and nothing holds.
    silent = found[:, 0] == UNKNOWN
    assert silent.any() and not holds[silent].any()
    assert np.all(right[holds])


@pytest.mark.parametrize("name", ["tanh bias", "relu bias", "relu"])
def test_what_holds_is_said_to(name):
    found, holds, labels = read(name, 50)
    assert np.all(found == labels) and np.all(holds)


@pytest.mark.parametrize(
    ("signs", "told"),
    [
        ([1, -1, 1, 1], True),
        ([1, -1, -1, 1], False),
        ([1, 1, 1, 1], False),
        ([1, -1, 1, 0], True),  # what is zero is of every sign
    ],
)
def test_one_negative_sum_of_columns_of_one_sign_is_told(signs, told):
    """Without a bias; in three features, of which the weights are by hand."""
    kernel = np.outer([3.0, 1.0, 2.0], signs) * [0.1, 1.0, 0.2, 0.3]

    def holds(kernel):
        view = View(None, None, Public({"fc/kernel": kernel}), *(5 * [None]))
        return bool(CONDITIONS["idlg"].holds(ground("relu"), view))

    assert holds(kernel) == told
    mixed = kernel.copy()
    mixed[1, 0] *= -1  # the sum of the column stays positive
    assert not holds(mixed)


def test_signs_are_a_slow_loop():
    """All pairs of columns by NumPy, some of zeros; sums where no column is alone."""
    generator, told = np.random.default_rng(0), 0
    here = ground("tanh", rule="opposite_sign")
    rule = quick_jit(lambda view: RULES["opposite_sign"](here, view))
    holds = quick_jit(lambda view: rule_holds(here, view))
    for trial in range(60):
        factors = generator.standard_normal(CLASSES) * generator.integers(0, 2, CLASSES)
        if trial % 2:  # as one example makes them: one below zero
            factors = np.abs(factors)
            factors[trial % CLASSES] = -1.0
        factors *= 10.0 ** generator.integers(-25, 1, CLASSES)
        features = generator.standard_normal(32) if trial % 3 else np.ones(32)
        kernel = np.outer(features, factors).astype(np.float32)
        columns = [c.astype(float) for c in kernel.T]
        there = [c for c in range(CLASSES) if np.any(columns[c])]
        alone = [
            c
            for c in there
            if len(there) > 1
            and all(columns[c] @ columns[d] < 0 for d in there if d != c)
        ]
        expected = alone[0] if len(alone) == 1 else np.argmin(kernel.sum(axis=0))
        view = View(None, {}, Public({"fc/kernel": kernel}), *(5 * [None]))
        if there:
            assert rule(view).tolist() == [expected]
        one_signed = trial % 3 == 0 and np.sum(kernel.sum(axis=0) < 0) == 1
        assert bool(holds(view)) == (len(alone) == 1 or one_signed)
        told += len(alone) == 1
    assert 20 < told < 50


SIGNED, UNSIGNED = "tanh bias", "relu bias"


@pytest.mark.parametrize("rule", ["ggl", "yin", "wainakh_simple", "counts"])
def test_rules_for_features_of_one_sign_say_where_there_are_others(rule):
    assert np.all(read(UNSIGNED, 3, rule, examples=3)[1])
    assert not np.any(read(SIGNED, 3, rule, examples=3)[1])


@pytest.mark.parametrize("rule", ["bias_corrected", "counts_bias"])
def test_rules_of_the_bias_ask_nothing_of_features(rule):
    assert np.all(read(SIGNED, 3, rule, examples=3)[1])


@pytest.mark.parametrize("rule", ["ggl", "yin"])
def test_labels_that_cannot_all_differ_are_said_to_be_guessed(rule):
    assert np.all(read(UNSIGNED, 2, rule, examples=CLASSES)[1])
    assert not np.any(read(UNSIGNED, 2, rule, examples=CLASSES + 1)[1])


def with_bias(bias):
    """A view whose classifier's gradient is this bias, and a kernel like it."""
    bias = np.asarray(bias, np.float32)
    sent = {"fc/bias": bias, "fc/kernel": np.tile(bias, (32, 1))}
    return View(None, {}, Public(sent), *(5 * [None]))


@pytest.mark.parametrize(
    ("rule", "examples", "negative"),
    [("idlg", 1, (1,)), ("bias_corrected", 2, (1, 2)), ("counts_bias", 2, (1, 2, 3))],
)
def test_too_many_negative_classes_are_said(rule, examples, negative):
    here = ground(SIGNED, examples, rule)
    for count in range(4):
        bias = np.where(np.arange(CLASSES) < count, -1.0, 0.5)
        view = with_bias(bias)
        assert bool(CONDITIONS[rule].holds(here, view)) == (count in negative)


def test_negative_classes_are_counted_by_columns_without_a_bias():
    """Each has entries of both signs; the sums alone tell."""
    here = ground("relu", examples=2, rule="wainakh_simple")
    for count in range(4):
        sums = np.where(np.arange(CLASSES) < count, -1.0, 0.5)
        kernel = np.stack([sums + 3, *(30 * [0 * sums]), 0 * sums - 3])
        view = View(None, {}, Public({"fc/kernel": kernel}), *(5 * [None]))
        assert bool(few_classes_pull(here, view)) == (count in (1, 2))


def smoothed(logits, targets):
    return cross_entropy(logits, 0.9 * targets + 0.1 / targets.shape[-1])


def hinge(logits, targets):
    true = jnp.sum(logits * targets, axis=-1, keepdims=True)
    return jnp.mean(jnp.sum(jnp.maximum(0.0, 1 + logits - true), axis=-1))


def flat(logits, targets):
    return 0.0 * cross_entropy(logits, targets)


def sigmoids(logits, targets):
    return jnp.mean(jnp.sum(jnp.logaddexp(0.0, logits) - logits * targets, axis=-1))


@pytest.mark.parametrize(
    ("loss", "holds"),
    [
        (cross_entropy, True),
        (sigmoids, True),
        (hinge, True),
        (smoothed, False),
        (flat, False),
    ],
)
def test_a_loss_that_pulls_other_classes_up_is_said(loss, holds):
    here = ground(SIGNED, loss=loss)
    view = with_bias(np.where(np.arange(CLASSES) == 3, -1.0, 0.5))
    assert bool(rule_holds(here, view)) == holds


def test_a_classifier_without_a_column_for_each_class_has_no_labels_to_recover():
    with pytest.raises(ValueError, match=r"'fc' has 1 column\(s\) for 10 classes"):
        recovered(ground("one output"))
    with pytest.raises(ValueError, match=r"'fc' has 1 column\(s\) for 1 classes"):
        recovered(replace_fields(ground("one output"), num_classes=1))
    with pytest.raises(ValueError, match="'fc' has 10 column.* for 5 classes"):
        recovered(replace_fields(ground("relu"), num_classes=5))
    recovered(replace_fields(ground("two outputs"), num_classes=2))  # are enough


def test_a_diagnosis_says_whether_the_rule_holds():
    views, _ = uploads("tanh", 1)
    view = jax.tree.map(lambda x: x[0], views)
    seen = quick_jit(label_rule_holds, static_argnums=0)
    assert seen(ground("tanh", rule="idlg"), view) == 0
    assert seen(ground("tanh"), view) == 1
    given = threat("unit", "given", labels="known")
    assert np.isnan(label_rule_holds(ground("tanh")._replace(threat=given), view))
