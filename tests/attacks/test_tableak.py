"""TabLeak: pairing, pooling, and a batch of rows that is read off a gradient."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import quick_jit, setting

from kljax import threat as threats
from kljax.attacks import Candidate
from kljax.attacks.ensembles import median_of_rows, pair_rows
from kljax.attacks.presets.tabular import tableak
from kljax.core.inputs import images_of
from kljax.core.tables import TableColumn, table_of
from kljax.core.types import Private, Public
from kljax.defences import none
from kljax.federated.clients import one_step
from kljax.metrics import assign
from kljax.models import Perceptron, from_nnx

COLUMNS = (
    TableColumn("a", (0,)),
    TableColumn("b", (1,)),
    TableColumn("c", (2, 3, 4), categories=("x", "y", "z")),
)
SPEC = table_of(COLUMNS)
MODEL = from_nnx(
    lambda rngs: Perceptron(2, image_shape=(5,), widths=(16, 8), rngs=rngs)
)
ROWS = np.array([[0.2, 0.7, 1, 0, 0], [0.9, 0.3, 0, 0, 1]], np.float32)
TARGETS = np.eye(2, dtype=np.float32)


def ground(labels="given", **changes):
    strategy = threats.Strategy(secret="unit", labels=labels)
    declared = threats.least_knowledge(strategy, examples=2)
    here = {"model": MODEL, "inputs": SPEC, "num_classes": 2, "sites": ()}
    return setting(declared, none(), **here | changes)


@functools.cache
def found():
    here = ground()
    step = one_step(MODEL, here.task.loss, none(), train=False)
    attack = tableak(here, steps=150, restarts=3)
    params, stats = MODEL.init(jax.random.key(3))

    def run(rows):
        update = step(
            jax.random.key(0), Public(params), stats, Private(), rows, TARGETS
        )
        return attack(jax.random.key(1), threats.observe(here.threat, update))

    return jax.device_get(quick_jit(run)(ROWS))


def test_a_batch_of_rows_is_recovered():
    rows = found().inputs
    order = assign(rows, ROWS)
    np.testing.assert_array_equal(rows[order][:, 2:], ROWS[:, 2:])
    np.testing.assert_allclose(rows[order][:, :2], ROWS[:, :2], atol=0.05)
    assert found().numbers["evaluations"] == 3 * 150 + 1
    assert 0 <= found().numbers["cell_entropy"] <= 0.5
    assert found().info["confidence"].shape == (2, 3)
    assert found().finite and found().loss < 1e-3


def test_pairs_are_those_of_least_distance_within_a_label():
    generator = np.random.default_rng(0)
    reference, rows = generator.random((2, 5, 4)).astype(np.float32)
    labels = np.array([0, 1, 0, 1, 0])
    mixed = np.array([1, 0, 0, 0, 1])
    targets = np.eye(2, dtype=np.float32)
    pair = quick_jit(pair_rows)
    order = np.asarray(pair(rows, targets[mixed], reference, targets[labels]))
    assert (mixed[order] == labels).all()
    legal = [
        p
        for p in map(list, itertools.permutations(range(5)))
        if (mixed[p] == labels).all()
    ]
    best = min(legal, key=lambda p: np.sum((rows[p] - reference) ** 2))
    assert order.tolist() == best


def test_the_pool_is_a_median_that_a_broken_restart_does_not_move():
    generator = np.random.default_rng(1)
    base = generator.random((4, 5)).astype(np.float32)
    noise = 0.01 * generator.standard_normal((4, 4, 5)).astype(np.float32)
    members = base + noise
    orders = np.array([[0, 1, 2, 3], [2, 0, 3, 1], [3, 2, 1, 0], [0, 1, 2, 3]])
    shuffled = np.stack([m[o] for m, o in zip(members, orders, strict=True)])
    shuffled[3] = np.nan
    targets = np.broadcast_to(np.eye(2, dtype=np.float32)[[0, 0, 0, 0]], (4, 4, 2))
    candidates = Candidate(shuffled, targets, np.zeros(4))
    losses = jnp.array([0.1, 0.2, 0.3, np.inf])
    pool = quick_jit(median_of_rows(COLUMNS))
    pooled, numbers, info = pool(candidates, losses, jnp.argmin(losses))
    np.testing.assert_allclose(pooled.inputs, np.median(members[:3], axis=0), rtol=1e-6)
    shares = np.maximum(np.median(members[:3], axis=0)[:, 2:], 0) + 1e-7
    shares /= shares.sum(1, keepdims=True)
    entropy = -(shares * np.log(shares)).sum(1) / np.log(3)
    assert numbers["cell_entropy"] == pytest.approx(entropy.mean(), rel=1e-4)
    spread = [members[:3, :, entry].std(axis=0) for entry in (0, 1)]
    sure = np.stack([-spread[0], -spread[1], 1 - entropy], axis=1)
    np.testing.assert_allclose(info["confidence"], sure, rtol=1e-3, atol=1e-6)


def test_where_all_restarts_broke_all_have_a_say():
    """Their losses are not finite, and their rows may be."""
    rows = np.array([[[0.1], [0.9]], [[0.3], [0.7]], [[0.8], [0.2]]], np.float32)
    targets = np.broadcast_to(np.eye(2, dtype=np.float32)[[0, 0]], (3, 2, 2))
    pool = quick_jit(median_of_rows(COLUMNS[:1]))
    candidates = Candidate(rows, targets, np.zeros(3))
    pooled, numbers, info = pool(candidates, jnp.full(3, jnp.inf), jnp.argmin(rows[0]))
    # Paired with the first: 0.1, 0.3 and 0.2; 0.9, 0.7 and 0.8.
    np.testing.assert_allclose(pooled.inputs, [[0.2], [0.8]], rtol=1e-6)
    assert np.isnan(numbers["cell_entropy"])  # no column of categories
    spread = np.std([0.1, 0.2, 0.3])
    np.testing.assert_allclose(info["confidence"], [[-spread]] * 2, rtol=1e-5)


@pytest.mark.parametrize(
    ("here", "message"),
    (
        ({"labels": "joint"}, "'joint' optimises them"),
        ({"inputs": images_of((8, 8, 1))}, "these inputs have no columns"),
    ),
)
def test_what_cannot_be_pooled_is_refused(here, message):
    with pytest.raises(ValueError, match=message):
        tableak(ground(**here), steps=2, restarts=2)


def test_a_perceptron_refuses_what_is_no_row():
    with pytest.raises(ValueError, match=r"takes inputs of shape \(D,\), got \(8, 8"):
        from_nnx(lambda rngs: Perceptron(2, image_shape=(8, 8, 1), rngs=rngs)).init(
            jax.random.key(0)
        )
    with pytest.raises(ValueError, match=r"expected \[B, 5\]"):
        jax.eval_shape(
            lambda rng: MODEL.apply(*MODEL.init(rng), jnp.zeros((2, 4)), train=False),
            jax.random.key(0),
        )
