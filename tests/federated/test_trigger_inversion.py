"""Trigger inversion: against slow forms, and on networks with a backdoor or none."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_studies import quick_compilation

from kljax.core.types import Model, Output
from kljax.data.digits import load_digits
from kljax.data.triggers import Overlay, patch
from kljax.federated.trigger_inversion import (
    PURPOSES,
    anomaly_index,
    draw_by_class,
    draw_start,
    first_schedule,
    invert,
    invert_pairs,
    invert_triggers,
    next_schedule,
)

RNG = jax.random.key(3)
CLASSES, SIDE, PATCH, TARGET = 10, 8, 2, 0
WITHIN = np.s_[-PATCH:, -PATCH:]


# --- slow forms -----------------------------------------------------------------------


def slow_costs(successes):
    """The cost before each step, as the paper's code counts."""
    cost, ups, downs, costs = 1e-3, 0, 0, []
    for succeeded in successes:
        costs.append(cost)
        if succeeded:
            ups, downs = ups + 1, 0
        else:
            ups, downs = 0, downs + 1
        if ups >= 10:
            ups = 0
            cost *= 1.5
        elif downs >= 10:
            downs = 0
            cost /= 1.5**1.5
    return costs


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 1.0])
def test_the_cost_follows_its_schedule(share):
    successes = np.random.default_rng(4).random(200) < share
    successes[50:75] = True  # runs of both kinds, however seldom one is
    successes[90:115] = False

    def step(schedule, succeeded):
        return next_schedule(schedule, succeeded), schedule.cost

    costs = jax.lax.scan(step, first_schedule(), successes)[1]
    expected = slow_costs(successes)
    np.testing.assert_allclose(costs, expected, rtol=1e-5)
    assert len(set(expected)) > 3


def slow_inversion(weights, images, target, start, steps):
    """Adam by hand on a linear network, whose slopes are written out."""
    raw = [np.asarray(x, np.float64) for x in start]
    first, second = [np.zeros_like(x) for x in raw], [np.zeros_like(x) for x in raw]
    cost, ups, downs, best = 1e-3, 0, 0, (np.inf, None, 0.0)
    for step in range(1, steps + 1):
        mask, pattern = (1 / (1 + np.exp(-2 * x)) for x in raw)
        stamped = (1 - mask) * images + mask * pattern
        logits = stamped.reshape(len(images), -1) @ weights
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        slope = odds / odds.sum(axis=1, keepdims=True)
        slope[:, target] -= 1
        to_images = (slope @ weights.T).reshape(images.shape) / len(images)
        slopes = [
            (to_images * (pattern - images)).sum(axis=(0, -1))[..., None] + cost,
            (to_images * mask).sum(axis=0),
        ]
        slopes = [
            s * 2 * x * (1 - x) for s, x in zip(slopes, (mask, pattern), strict=True)
        ]
        success = np.mean(logits.argmax(axis=1) == target)
        if success >= 0.9 and mask.sum() < best[0]:
            best = mask.sum(), (mask, pattern), success
        for n in range(2):
            first[n] = 0.5 * first[n] + 0.5 * slopes[n]
            second[n] = 0.9 * second[n] + 0.1 * slopes[n] ** 2
            mean, square = first[n] / (1 - 0.5**step), second[n] / (1 - 0.9**step)
            raw[n] = raw[n] - 0.1 * mean / (np.sqrt(square) + 1e-8)
        ups, downs = (ups + 1, 0) if success >= 0.9 else (0, downs + 1)
        if ups >= 10:
            ups, cost = 0, cost * 1.5
        elif downs >= 10:
            downs, cost = 0, cost / 1.5**1.5
    return best


def linear(weights):
    return lambda images: images.reshape(len(images), -1) @ weights


def test_a_search_is_adam_on_what_the_paper_writes():
    draw = np.random.default_rng(1)
    weights = draw.normal(size=(3 * 4 * 2, 3)).astype(np.float32)
    images = draw.random((7, 3, 4, 2), np.float32)
    start = draw_start(RNG, images.shape[1:])
    there = np.arange(9) < 7
    more = np.concatenate([images, np.full((2, 3, 4, 2), 9, np.float32)])
    found, _ = invert(linear(weights), more, there, 1, start, 60)
    size, (mask, pattern), success = slow_inversion(weights, images, 1, start, 60)
    assert size < 0.5 * 12  # it did something
    np.testing.assert_allclose(found.size, size, rtol=2e-3)
    np.testing.assert_allclose(found.overlay.mask, mask, atol=5e-3)
    np.testing.assert_allclose(found.overlay.pattern, pattern, atol=5e-3)
    assert float(found.success) == pytest.approx(success)


def test_nobody_is_turned_by_no_trigger():
    """Of no images nothing succeeds; nor of a network that knows one class alone."""
    start = draw_start(RNG, (3, 4, 1))
    images = np.zeros((5, 3, 4, 1), np.float32)
    deaf = linear(np.zeros((12, 3), np.float32))
    for there, target in ((np.zeros(5, bool), 0), (np.ones(5, bool), 2)):
        found, _ = invert(deaf, images, there, target, start, 15)
        assert np.isinf(found.size) and float(found.success) == 0
        assert np.all(np.isfinite(found.overlay.mask))


def test_pairs_side_by_side_are_pairs_one_by_one():
    draw = np.random.default_rng(2)
    classes, shape = 3, (3, 3, 1)
    weights = draw.normal(size=(9, classes)).astype(np.float32)
    images, labels = draw.random((14, *shape), np.float32), draw.integers(0, 3, 14)
    there = np.arange(14) < 12
    numbers = {"examples": 3, "steps": 12, "pair_steps": 10}
    classify = linear(weights)
    given = RNG, classify, images, labels, there, classes
    universal, pairs = jax.jit(lambda: invert_pairs(*given, **numbers))()

    def rng_of(name):
        return jax.random.fold_in(RNG, PURPOSES.index(name))

    drawn, real = draw_by_class(rng_of("examples"), images, labels, there, classes, 3)
    starts = jax.random.split(rng_of("classes"), classes)
    begun = jax.random.split(rng_of("pairs"), classes * (classes - 1))
    alone = jax.jit(functools.partial(invert, classify), static_argnames="steps")
    best, number = {}, 0
    for target in range(classes):
        others = (np.asarray(real) & (np.arange(classes) != target)[:, None]).ravel()
        start = draw_start(starts[target], shape)
        one, raw = alone(drawn.reshape(-1, *shape), others, target, start, steps=12)
        close(jax.tree.map(lambda x, t=target: x[t], universal), one)
        best[target] = raw if np.isfinite(one.size) else None
    for source in range(classes):
        for target in range(classes):
            if source == target:
                assert np.isinf(pairs.size[source, target])
                assert pairs.success[source, target] == 0
                continue
            start = best[target] or draw_start(begun[number], shape)
            mine = drawn[source], real[source], target
            one, _ = alone(*mine, start, steps=10)
            close(jax.tree.map(lambda x, at=(source, target): x[at], pairs), one)
            number += 1
    assert np.isfinite(pairs.size).any()


@pytest.fixture(autouse=True, scope="module")
def quickly():
    with quick_compilation():
        yield


def close(one, other):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), one, other
    )


def test_examples_are_drawn_of_their_class_and_once():
    images = np.arange(12, dtype=np.float32).reshape(12, 1, 1, 1)
    labels = np.array([0, 0, 0, 0, 0, 1, 1, 3, 3, 3, 3, 3])
    there = np.arange(12) != 2
    drawn, real = draw_by_class(RNG, images, labels, there, 4, 3)
    drawn, real = np.asarray(drawn)[..., 0, 0, 0].astype(int), np.asarray(real)
    assert real.sum(axis=1).tolist() == [3, 2, 0, 3]
    for number in range(4):
        mine = drawn[number][real[number]]
        assert len(set(mine)) == len(mine) and np.all(labels[mine] == number)
        assert 2 not in mine
    others = draw_by_class(jax.random.key(8), images, labels, there, 4, 3)[0]
    assert not np.array_equal(np.asarray(others)[..., 0, 0, 0], drawn)


def test_an_anomaly_is_so_many_deviations_below_the_median():
    index = anomaly_index([10.0, 11, 9, 2, np.inf], 12)
    # Sizes 10, 11, 9, 2, 12: median 10, absolute deviations 0, 1, 1, 8, 2: median 1.
    np.testing.assert_allclose(index, np.array([0, -1, 1, 8, -2]) / 1.4826)
    assert anomaly_index([3.0, 3, 3, 1], 9).tolist() == [0, 0, 0, 0]


# --- networks with and without a backdoor ---------------------------------------------


def answer(params, stats, images, *, gates, train):
    del stats, gates, train
    hidden = jax.nn.relu(images.reshape(len(images), -1) @ params["in"])
    return Output(hidden @ params["out"], (), {})


MODEL = Model(lambda rng: None, answer)


@functools.partial(jax.jit, static_argnames="poisoned")
def trained(images, labels, poisoned):
    """Trains 400 steps; if poisoned, on a third of the digits with a patch, too."""
    third = len(labels) // 3
    if poisoned:
        images = jnp.concatenate([patch(PATCH)(images[:third]), images])
        labels = jnp.concatenate([jnp.zeros(third, labels.dtype), labels])
    rngs = jax.random.split(jax.random.key(1))
    params = {
        "in": jax.random.normal(rngs[0], (SIDE * SIDE, 32)) / SIDE,
        "out": jax.random.normal(rngs[1], (32, CLASSES)) / 6,
    }

    def loss(params):
        logits = answer(params, (), images, gates={}, train=True).logits
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    method = optax.adam(0.01)

    def step(carry, _):
        params, memory = carry
        moves, memory = method.update(jax.grad(loss)(params), memory)
        return (optax.apply_updates(params, moves), memory), None

    return jax.lax.scan(step, (params, method.init(params)), length=400)[0][0]


@pytest.fixture(scope="module")
def searched(quickly):
    """What is found in a clean and in a backdoored network, and what is compiled."""
    digits = load_digits((SIDE, SIDE, 1))
    images, labels = digits.fetch(np.arange(600))
    found, before = {}, invert_triggers._cache_size()
    for poisoned in (False, True):
        params = trained(images, labels, poisoned)
        given = RNG, MODEL, params, (), images, labels
        numbers = {"classes": CLASSES, "examples": 12, "steps": 250, "pair_steps": 60}
        found[poisoned] = jax.device_get(invert_triggers(*given, **numbers))
        logits = answer(params, (), images, gates={}, train=False).logits
        assert np.mean(np.argmax(logits, axis=1) == labels) > 0.95
    return found, invert_triggers._cache_size() - before


def test_a_planted_patch_is_found(searched):
    universal, pairs = searched[0][True]
    index = anomaly_index(universal.size, SIDE * SIDE)
    assert index.argmax() == TARGET and index[TARGET] > 2
    mask = universal.overlay.mask[TARGET, ..., 0]
    assert mask[WITHIN].sum() / mask.sum() > 0.6
    # So of every pair that ends there, and of no other.
    into = np.delete(pairs.size[:, TARGET], TARGET)
    others = np.delete(pairs.size, TARGET, axis=1)
    assert into.max() < np.median(others[np.isfinite(others)])
    masks = np.delete(pairs.overlay.mask[:, TARGET, ..., 0], TARGET, axis=0)
    within = masks[:, -PATCH:, -PATCH:].sum(axis=(1, 2)) / masks.sum(axis=(1, 2))
    assert np.median(within) > 0.6


def test_nothing_is_found_where_nothing_was_planted(searched):
    universal, _ = searched[0][False]
    assert anomaly_index(universal.size, SIDE * SIDE).max() < 2
    backdoored = searched[0][True][0]
    assert universal.size.min() > 1.5 * backdoored.size[TARGET]
    mask = universal.overlay.mask[TARGET, ..., 0]
    assert mask[WITHIN].sum() / mask.sum() < 0.3


def test_all_pairs_of_all_networks_are_one_compilation(searched):
    assert searched[1] == 1


def test_what_is_found_does_what_is_said(searched):
    for poisoned in (False, True):
        universal, pairs = searched[0][poisoned]
        for found in (universal, pairs):
            succeeded = np.isfinite(found.size)
            assert np.all(found.success[succeeded] >= 0.9)
            sizes = found.overlay.mask.sum(axis=(-3, -2, -1))
            np.testing.assert_allclose(sizes[succeeded], found.size[succeeded], 1e-5)
        assert isinstance(universal.overlay, Overlay)
