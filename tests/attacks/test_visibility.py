"""Hidden entries of an upload: never matched, never read, never taken for zeros."""

import functools

import jax
import numpy as np
import pytest
from poison import differences
from victims import Case, compiled, error_of, update

from kljax.attacks import (
    OBJECTIVES,
    UNKNOWN,
)
from kljax.attacks.objectives import FAINT
from kljax.attacks.presets import matching
from kljax.attacks.visibility import comparable, says_something, zeros_for_hidden
from kljax.threat import View

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
    return View(None, None, grads, *(5 * [None]), visible)


def test_every_objective_is_known_by_hand():
    assert BY_HAND.keys() == OBJECTIVES.keys()


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


def test_a_mask_that_hides_nothing_changes_nothing():
    truth = update()
    plain, open_ = adaptive()(truth), adaptive()(masked(truth, 0.0))
    assert error_of(plain, truth) < 1e-4
    np.testing.assert_allclose(open_.images, plain.images, atol=1e-2)
    assert error_of(open_, truth) < 1e-4 and open_.finite


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
