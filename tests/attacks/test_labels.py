"""How labels are come by."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import CLASSES, locked_update, quick_jit, setting, threat

from kljax.attacks import LABELS, UNKNOWN, idlg
from kljax.attacks.labels import settled_labels, targets_of
from kljax.attacks.presets import matching
from kljax.core.types import Public
from kljax.defences import none
from kljax.models.losses import cross_entropy
from kljax.threat import LABEL_STRATEGIES, View, observe

RNG = jax.random.key(2)


def classifier_view(label, bias):
    """The view of a classifier's gradient alone, on features that are positive."""
    generator = np.random.default_rng(label)
    features = generator.random((1, 6)).astype(np.float32)
    params = {"fc/kernel": generator.standard_normal((6, 5)).astype(np.float32)}
    if bias:
        params["fc/bias"] = generator.standard_normal(5).astype(np.float32)
    targets = np.eye(5, dtype=np.float32)[[label]]

    def loss(params):
        logits = features @ params["fc/kernel"]
        logits += params.get("fc/bias", np.zeros(5, np.float32)).reshape(1, -1)
        return cross_entropy(logits, targets)

    grads = Public(quick_jit(jax.grad(loss))(params))
    return View(Public(params), {}, grads, *(5 * [None]))


@pytest.mark.parametrize("bias", (True, False), ids=("bias", "no bias"))
@pytest.mark.parametrize("label", range(5))
def test_idlg_reads_every_label(label, bias):
    found = idlg(setting(threat(), none()), classifier_view(label, bias))
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, [label])


# Signs of what the classifier's gradient is, two features and the bias; ? is hidden.
SIGNS = {
    "one is seen to be pulled down": ("++-+", "????", "++?+", 2),
    "whatever the others are": ("?0-?", "????", "????", 2),
    "all but one are pushed up": ("+?++", "++?+", "?0?+", UNKNOWN),
    "of which nothing is seen": ("+?++", "+?++", "+??+", 1),
    "two are seen to be pulled down": ("+--+", "????", "+??+", UNKNOWN),
    "two are not pushed up": ("+0++", "+?++", "+?+?", 1),
    "and none is seen": ("+??+", "+??+", "+??+", UNKNOWN),
    "features have both signs": ("++-+", "++++", "++?+", UNKNOWN),
    "in another column": ("++-+", "-+-+", "++?+", UNKNOWN),
    "all are pushed up": ("++++", "++++", "+?++", UNKNOWN),
}


@pytest.mark.parametrize("case", SIGNS)
def test_idlg_reads_the_signs_that_are_left(case):
    *rows, label = SIGNS[case]
    numbers = {"+": 0.5, "-": -2.0, "0": 0.0, "?": np.nan}
    *kernel, bias = np.float32([[numbers[sign] for sign in row] for row in rows])
    sent = Public({"fc/kernel": np.stack(kernel), "fc/bias": bias})
    visible = jax.tree.map(lambda leaf: ~np.isnan(leaf), sent)
    view = View(Public({}), {}, sent, *(5 * [None]), visible=visible)
    ground = setting(threat(), none(), num_classes=4)
    assert idlg(ground, view).tolist() == [label]


def test_the_table_is_that_of_the_threat_model():
    assert set(LABELS) == set(LABEL_STRATEGIES)


def begin(name, rng=RNG, **facts):
    model = threat("unit", name, **facts)
    unknown = LABELS[name](setting(model, none()))
    view = observe(model, locked_update(facts.get("examples", 1)))
    free, fixed = unknown.start(rng, view)
    return free, unknown.decode(free, fixed)


def test_given_takes_them_from_the_view():
    free, targets = begin("given", labels="known", examples=2)
    assert free == ()
    np.testing.assert_array_equal(targets, locked_update(2).targets)


def test_recovered_are_one_hot_and_fixed():
    free, targets = begin("recovered")
    assert free == ()
    np.testing.assert_array_equal(targets, locked_update(1).targets)
    assert targets.shape == (1, CLASSES)


def test_joint_are_optimised_probabilities():
    free, targets = begin("joint", examples=2)
    assert free.shape == targets.shape == (2, CLASSES)
    np.testing.assert_allclose(np.sum(targets, axis=-1), 1, rtol=1e-6)
    expected = np.exp(free) / np.exp(free).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(targets, expected, rtol=1e-5)
    assert np.all(begin("joint", jax.random.key(3), examples=2)[0] != free)


def test_targets_of_a_label_that_is_unknown_are_nan():
    """Class 0 is a class."""
    found = targets_of(jnp.array([0, UNKNOWN, 2]), 3)
    np.testing.assert_array_equal(found, [[1, 0, 0], 3 * [np.nan], [0, 0, 1]])


def test_a_batch_cannot_be_recovered_by_idlg():
    with pytest.raises(ValueError, match="needs examples=1, got examples=2"):
        LABELS["recovered"](setting(threat(examples=2), none(), label_rule="idlg"))


def test_a_batch_is_recovered_by_the_rule_of_the_setting():
    _, targets = begin("recovered", examples=2)
    found = sorted(np.argmax(targets, axis=-1))
    assert found == sorted(np.argmax(locked_update(2).targets, axis=-1))


# --- where nothing tells them ----------------------------------------------------


def test_no_class_is_the_unknown_one():
    """Rows and tables of finished studies hold it as a number."""
    assert UNKNOWN == -1


def silent(value):
    """A view whose classifier's gradient is one value; the rest of it is as it was."""
    model = threat()
    view = observe(model, locked_update(1))
    sent = view.grads.model
    broken = {k: np.full_like(x, value) if "fc/" in k else x for k, x in sent.items()}
    assert any(np.any(x != 0) for k, x in broken.items() if "fc/" not in k)
    return setting(model, none()), view._replace(grads=Public(broken))


@pytest.mark.parametrize("value", (0.0, np.nan))
def test_labels_that_nothing_tells_are_said_to_be_unknown(value):
    ground, view = silent(value)
    _, targets = LABELS["recovered"](ground).start(RNG, view)
    assert targets.shape == (1, CLASSES) and np.all(np.isnan(targets))
    assert settled_labels(ground, "a closed form")(RNG, view).tolist() == [UNKNOWN]


@pytest.mark.parametrize("value", (0.0, np.nan))
def test_an_attack_on_labels_that_nothing_tells_is_a_reported_failure(value):
    """The rest of the gradient is there, and would be matched by some class."""
    ground, view = silent(value)
    found = quick_jit(matching(ground, steps=2, restarts=1))(RNG, view)
    assert not bool(found.finite) and found.labels.tolist() == [UNKNOWN]
    assert np.all(np.isfinite(found.inputs))


def test_who_is_given_the_labels_needs_no_classifier():
    """The same gradient of zeros: it was the labels that failed."""
    model = threat("unit", "given", labels="known")
    _, view = silent(0.0)
    view = view._replace(targets=locked_update(1).targets)
    attack = matching(setting(model, none()), steps=2, restarts=1)
    found = quick_jit(attack)(RNG, view)
    assert bool(found.finite)
    assert found.labels.tolist() == np.argmax(view.targets, axis=-1).tolist()
