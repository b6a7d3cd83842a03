"""Hidden entries of an upload: never matched, never read, never taken for zeros."""

import functools

import jax
import numpy as np
import pytest
from poison import differences
from toys import setting, threat
from victims import Case, compiled, error_of, ground, update

from kljax.attacks import (
    OBJECTIVES,
    RULES,
    UNKNOWN,
    dense_input,
    dense_layer,
    live_channels,
)
from kljax.attacks.labels import CONDITIONS
from kljax.attacks.objectives import FAINT
from kljax.attacks.presets import matching
from kljax.attacks.visibility import comparable, says_something, zeros_for_hidden
from kljax.core.inputs import images_of
from kljax.core.types import Public
from kljax.defences import none
from kljax.models import Dense, from_nnx
from kljax.threat import View, observe

GENERATOR = np.random.default_rng(7)


def random_masks(tree, share, seed=0):
    """Hides each entry with probability `share`."""
    generator = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: generator.random(np.shape(leaf)) >= share, tree)


def masked(truth, share, seed=0):
    return truth._replace(visible=random_masks(truth.sent, share, seed))


def hiding(truth, *names):
    """Hides whole tensors of the network."""
    masks = random_masks(truth.sent, 0.0)
    hidden = {name: np.zeros_like(masks.model[name]) for name in names}
    return truth._replace(visible=masks._replace(model=masks.model | hidden))


# --- objectives ------------------------------------------------------------------

# Whole, in part, hidden throughout, in part, too faint to count.
SHAPES = ((3, 2), (5,), (4,), (2, 2, 2), (3,))
PAIR = [
    [GENERATOR.standard_normal(shape).astype(np.float32) for shape in SHAPES]
    for _ in range(2)
]
for tensors in PAIR:
    tensors[-1] *= np.float32(1e-9)
MASKS = [
    np.ones((3, 2), bool),
    np.array([True, False, True, True, False]),
    np.zeros(4, bool),
    GENERATOR.random((2, 2, 2)) < 0.5,
    np.ones(3, bool),
]


def cosine_of(g, o):
    return 1 - g @ o / np.sqrt((g @ g) * (o @ o))


def counted(pairs):
    """The tensors of which something is visible, and more than rounding."""
    whole = np.sum(np.concatenate([o for _, o in pairs]) ** 2)
    return [(g, o) for g, o in pairs if o @ o > FAINT**2 * whole]


def balanced(pairs):
    whole = np.sum(np.concatenate([o for _, o in pairs]) ** 2)
    terms = [np.sum((g - o) ** 2) * np.sqrt(whole / (o @ o)) for g, o in counted(pairs)]
    return np.sum(terms) / len(pairs)


# Of the visible entries alone: a vector per tensor, and all of them behind each other.
BY_HAND = {
    "squared_l2": lambda pairs, g, o: np.sum((g - o) ** 2),
    # A tensor that is hidden throughout is one of them, at no distance.
    "mean_squared_l2": lambda pairs, g, o: np.sum((g - o) ** 2) / len(pairs),
    "l1": lambda pairs, g, o: np.sum(np.abs(g - o)),
    "norm": lambda pairs, g, o: sum(np.linalg.norm(a - b) for a, b in pairs),
    "l2_norm": lambda pairs, g, o: np.sum((g - o) ** 2) + np.linalg.norm(g - o),
    "tag": lambda pairs, g, o: np.sum((g - o) ** 2) + 0.01 * np.sum(np.abs(g - o)),
    "cosine": lambda pairs, g, o: cosine_of(g, o),
    "cosine_per_tensor": lambda pairs, g, o: np.mean(
        [cosine_of(*pair) for pair in counted(pairs)]
    ),
    "balanced_l2": lambda pairs, g, o: balanced(pairs),
}


def view_of(grads, visible):
    grads = jax.tree.map(lambda x, seen: np.where(seen, x, np.nan), grads, visible)
    return View(Public({}), None, grads, *(5 * [None]), visible)


def test_every_objective_is_known_by_hand():
    assert BY_HAND.keys() == OBJECTIVES.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_is_that_of_the_visible_entries(name):
    simulated, observed = PAIR
    objective, view = OBJECTIVES[name](), view_of(observed, MASKS)

    def distance(simulated):
        return objective(*comparable(view, simulated))

    pairs = [
        [np.float64(x[seen]) for x in pair]
        for *pair, seen in zip(simulated, observed, MASKS, strict=True)
    ]
    flat = [np.concatenate(vectors) for vectors in zip(*pairs, strict=True)]
    expected = BY_HAND[name](pairs, *flat)
    value, slopes = jax.value_and_grad(distance)(simulated)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for slope, seen in zip(slopes, MASKS, strict=True):
        assert np.all(np.isfinite(slope)) and np.all(slope[~seen] == 0)
    assert any(np.any(slope != 0) for slope in slopes)


def test_without_a_mask_nothing_is_touched():
    view = view_of(PAIR[1], MASKS)._replace(visible=None, grads=PAIR[1])
    assert comparable(view, PAIR[0]) == (PAIR[0], PAIR[1])
    assert zeros_for_hidden(view) is view


@pytest.mark.parametrize("value", (0.0, 1.0, np.nan))
def test_an_upload_says_something_if_a_visible_entry_does(value):
    grads = {"a": np.full(2, value, np.float32), "b": np.zeros(1, np.float32)}
    for masks, seen in (
        ([True, False], True),
        ([False, False], False),
    ):
        view = view_of(grads, {"a": np.array(masks), "b": np.ones(1, bool)})
        assert says_something(view) == (seen and value != 0)


# --- searches --------------------------------------------------------------------


def search(build=matching, labels="given", wrap=lambda view: view):
    """A short search for the image of the small network."""

    def build_short(setting):
        attack = build(setting, steps=300, restarts=1)
        return lambda rng, view: attack(rng, wrap(view))

    return compiled(Case(build_short, labels=labels))


@functools.cache
def adaptive():
    return search()


@pytest.mark.slow
def test_a_mask_that_hides_nothing_changes_nothing():
    truth = update()
    plain, open_ = adaptive()(truth), adaptive()(masked(truth, 0.0))
    assert error_of(plain, truth) < 1e-4
    np.testing.assert_allclose(open_.inputs, plain.inputs, atol=1e-2)
    assert error_of(open_, truth) < 1e-4 and open_.finite


@pytest.mark.slow
def test_half_of_the_entries_tell_the_image():
    """The network has fifty entries per pixel; who matches zeros sees nothing."""
    truth = masked(update(), 0.5)
    assert error_of(adaptive()(truth), truth) < 1e-3
    assert error_of(search(wrap=zeros_for_hidden)(truth), truth) > 0.02


def test_hidden_values_cannot_change_a_reconstruction():
    truth = masked(update(), 0.5)

    def poison(x, seen):
        other = GENERATOR.standard_normal(x.shape).astype(np.float32)
        return np.where(seen, x, other)

    other = truth._replace(sent=jax.tree.map(poison, truth.sent, truth.visible))
    assert differences(other.sent, truth.sent)
    assert not differences(adaptive()(other), adaptive()(truth))
    # Visible ones can.
    third = truth._replace(sent=jax.tree.map(np.negative, truth.sent))
    assert differences(adaptive()(third), adaptive()(truth))


def test_an_upload_that_is_hidden_throughout_tells_nothing():
    truth = masked(update(), 1.0)
    found = adaptive()(truth)
    assert not found.finite
    assert error_of(found, truth) > 0.05
    # Whatever was sent.
    other = truth._replace(sent=jax.tree.map(np.ones_like, truth.sent))
    assert not differences(adaptive()(other), found)
    recovered = search(labels="recovered")(truth)
    assert not recovered.finite and recovered.labels.tolist() == [UNKNOWN]


# --- closed forms ----------------------------------------------------------------


def masks_like(tree, hidden=()):
    """Masks of a classifier's gradient, of which some (tensor, place) are hidden."""
    masks = {name: np.ones(leaf.shape, bool) for name, leaf in tree.items()}
    for name, place in hidden:
        masks[name][place] = False
    return masks


def classifier(label=2, signed=False, hidden=()):
    """A view of the gradient of a classifier, features [6], five classes."""
    generator = np.random.default_rng(label)
    features = generator.random(6) - 0.5 * signed
    pull = generator.random(5)
    pull /= pull.sum()
    pull[label] -= 1
    grads = {"fc/kernel": np.outer(features, pull), "fc/bias": pull}
    grads = Public({name: np.float32(leaf) for name, leaf in grads.items()})
    visible = Public(masks_like(grads.model, hidden))
    return view_of(grads, visible)._replace(public=grads, stats={})


def label_of(view, rule="idlg", examples=1):
    here = setting(threat(examples=examples), none(), num_classes=5, label_rule=rule)
    return RULES[rule](here, view).tolist()


WHOLE = (slice(None),)


@pytest.mark.parametrize(
    ("hidden", "label"),
    [
        ((), [2]),
        ([("fc/bias", 0)], [2]),
        ([("fc/kernel", WHOLE)], [2]),  # the bias tells
        ([("fc/bias", WHOLE)], [2]),  # and so do the weights
        # The true class alone is hidden: it is the one not seen to be pushed up.
        ([("fc/bias", WHOLE), ("fc/kernel", (slice(None), 2))], [2]),
        # One entry of another class is left: still.
        ([("fc/bias", WHOLE), ("fc/kernel", (slice(1, None), 4))], [2]),
        ([("fc/bias", WHOLE), ("fc/kernel", (slice(None), [2, 4]))], [UNKNOWN]),
        ([("fc/bias", WHOLE), ("fc/kernel", WHOLE)], [UNKNOWN]),
    ],
)
def test_idlg_reads_what_is_left_of_the_classifier(hidden, label):
    assert label_of(classifier(hidden=hidden)) == label


def test_features_of_both_signs_tell_nothing_by_sign():
    hidden = [("fc/bias", WHOLE)]
    assert label_of(classifier(signed=True, hidden=hidden)) == [UNKNOWN]


@pytest.mark.parametrize("rule", [rule for rule in RULES if "counts" not in rule])
def test_no_rule_reads_a_hidden_entry_as_a_zero(rule):
    """The entry that tells the label is hidden, and with it enough of the others."""
    hidden = [
        ("fc/bias", WHOLE),
        ("fc/kernel", (slice(None), 2)),
        ("fc/kernel", (0, slice(None))),
        ("fc/kernel", (slice(None), 1)),
    ]
    view = classifier(hidden=hidden)
    assert label_of(classifier(), rule) == [2]
    assert label_of(view, rule) == [UNKNOWN]
    here = setting(threat(), none(), num_classes=5, label_rule=rule)
    if rule in ("idlg", "opposite_sign", "bias_corrected"):  # by signs alone
        holds = CONDITIONS[rule].holds
        assert holds(here, classifier()) and not holds(here, view)
    # Read as zeros it would tell nothing of the truth.
    assert label_of(zeros_for_hidden(view), rule) != [2]


@pytest.mark.parametrize("rule", ("counts", "counts_bias"))
def test_counts_of_a_hidden_classifier_are_unknown(rule):
    truth = hiding(update(examples=2), "fc/kernel", "fc/bias")
    declared = threat(examples=2)
    here = ground(declared, label_rule=rule)
    assert RULES[rule](here, observe(declared, truth)).tolist() == [UNKNOWN] * 2


def test_channels_are_dead_by_what_is_visible():
    kernel = np.ones((3, 3, 1, 4), np.float32)
    kernel[..., 1:] = 0
    kernel[0, 0, 0, 2] = 5
    masks = np.ones_like(kernel, bool)
    masks[1:, ..., 1] = False
    masks[0, 0, 0, 2] = False  # its only entry that is not zero
    masks[..., 3] = False
    here = setting(threat(), none(), sites=(("norm", 4),), feeds=(("norm", "conv"),))
    view = view_of(Public({"conv/kernel": kernel}), Public({"conv/kernel": masks}))
    # Of the third the visible entries mislead; the last cannot be seen.
    assert live_channels(here, view)["norm"].tolist() == [True, False, False, True]


def test_a_dense_layer_is_read_off_its_visible_entries():
    inputs = GENERATOR.random((2, 6)).astype(np.float32)
    signals = GENERATOR.standard_normal((2, 4)).astype(np.float32)
    for count in (1, 2):  # of several examples, the mean by their visible signals
        kernel = inputs[:count].T @ signals[:count]
        bias = signals[:count].sum(axis=0)
        kernel[0, 1:] = kernel[1] = bias[2] = np.nan
        seen = ~np.isnan(kernel) & ~np.isnan(bias)
        expected = [
            kernel[row, its] @ bias[its] / (bias[its] @ bias[its])
            if its.any()
            else np.nan
            for row, its in enumerate(seen)
        ]
        found = dense_input(kernel, bias, partly=True)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        if count == 1:
            np.testing.assert_allclose(
                np.delete(found, 1), np.delete(inputs[0], 1), 1e-5
            )
        assert np.all(np.isnan(dense_input(kernel, bias)))


def test_a_dense_network_gives_away_what_its_visible_entries_say():
    shape, classes = (4, 4, 1), 3
    network = from_nnx(
        lambda rngs: Dense(classes, image_shape=shape, widths=(), rngs=rngs)
    )
    image = GENERATOR.random((1, *shape)).astype(np.float32)
    signal = np.array([0.3, -0.5, 0.2], np.float32)
    grads = {"fc/kernel": np.outer(image.ravel(), signal), "fc/bias": signal}
    here = setting(
        threat(),
        none(),
        model=network,
        inputs=images_of(shape),
        num_classes=classes,
        sites=(),
    )
    attack = dense_layer(here, "fc")
    hidden = [("fc/kernel", (slice(None), [0, 1])), ("fc/kernel", 5), ("fc/bias", 0)]
    view = view_of(Public(grads), Public(masks_like(grads, hidden)))
    found = attack(jax.random.key(0), view)
    expected = np.where(np.arange(16) == 5, 0.5, image.ravel())
    np.testing.assert_allclose(found.inputs.ravel(), expected, rtol=1e-5)
    assert found.finite and found.loss < 1e-10
    nothing = view_of(Public(grads), Public(masks_like(grads, [("fc/bias", WHOLE)])))
    assert not attack(jax.random.key(0), nothing).finite
