"""What a real network is worth that was trained behind a lock."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_studies import quick_compilation
from toys import CLASSES, IMAGE_SHAPE, SITES, WIDTHS, Toy, quick_jit, random_weights

from kljax.core.types import Gate, Model, Private, Public
from kljax.defences import keylock
from kljax.defences.lock import key_lock
from kljax.federated.evaluation import TESTS, Examples, accuracy, arm, evaluate, refit
from kljax.models import from_nnx
from kljax.models.losses import cross_entropy

RNG = jax.random.key(11)


@pytest.fixture(autouse=True)
def quickly():
    with quick_compilation():
        yield


# --- a real network, trained behind a lock ----------------------------------------

TOY_LOCK = key_lock(SITES, WIDTHS, size=5, activation=lambda x: x)
TRUE_GATES = {
    "norm": Gate(np.array([-3, 2, -2], np.float32), np.array([1, -1, 0], np.float32))
}
TOY_UNIT = {"norm": Gate(np.ones(3, np.float32), np.zeros(3, np.float32))}


def opens(seed):
    """Draws a pair of private key and lock weights that makes TRUE_GATES."""
    generator = np.random.default_rng(seed)
    secret = generator.random(5, np.float32)

    def dense(values):
        kernel = generator.uniform(-4, 4, (5, 3)).astype(np.float32)
        return {"kernel": kernel, "bias": values - secret @ kernel}

    scale, shift = TRUE_GATES["norm"]
    return Private(secret, ({"scale": dense(scale), "shift": dense(shift)},))


def blobs(count, seed):
    """Draws easy examples: three classes, far apart, equally many of each."""
    generator = np.random.default_rng(seed)
    centres = 0.6 * np.eye(3, 4) + 0.2
    labels = np.arange(count) % CLASSES
    images = centres[labels] + 0.05 * generator.normal(size=(count, 4))
    return Examples(images.reshape(-1, *IMAGE_SHAPE).astype(np.float32), labels)


@functools.cache
def counted_toy():
    """Makes the toy network; counts how often it is traced, by mode."""
    model, traces = from_nnx(Toy), collections.Counter()

    def apply(*args, train, **options):
        traces[train] += 1
        return model.apply(*args, train=train, **options)

    return Model(model.init, apply), traces


@functools.cache
def trained():
    """Trains the network behind TRUE_GATES on the whole of a small data set."""
    model, _ = counted_toy()
    images, labels = blobs(60, seed=1)
    targets = np.eye(CLASSES, dtype=np.float32)[labels]
    # Not Adam: it would let the bias before the norm, whose gradient is rounding, run
    # away from the running mean.
    optimiser = optax.sgd(0.2, momentum=0.9)

    def objective(params, stats):
        out = model.apply(params, stats, images, gates=TRUE_GATES, train=True)
        return cross_entropy(out.logits, targets), out.stats

    def step(state, _):
        params, stats, moments = state
        grads, stats = jax.grad(objective, has_aux=True)(params, stats)
        updates, moments = optimiser.update(grads, moments)
        return (optax.apply_updates(params, updates), stats, moments), None

    params, stats = jax.tree.map(jnp.asarray, random_weights(model))
    start = params, stats, optimiser.init(params)
    run = quick_jit(lambda state: jax.lax.scan(step, state, length=600)[0])
    params, stats, _ = run(start)
    return params, stats


def evaluate_toy(**options):
    model, _ = counted_toy()
    params, stats = trained()
    options = {
        "unit_gates": TOY_UNIT,
        "test": blobs(90, seed=2),
        "public_examples": blobs(150, seed=3),
        "initial_lock_weights": opens(8).trainable,
        "rng": RNG,
        "tests": tuple(name for name in TESTS if TESTS[name].examples <= 100),
        "draws": 2,
        "batch": 40,
    } | options
    privates = [opens(seed) for seed in range(3)]
    defence = TOY_DEFENCE
    return evaluate(model, defence, Public(params), stats, privates, **options)


TOY_DEFENCE = keylock(TOY_LOCK)


@functools.cache
def toy_results():
    found = evaluate_toy()
    return found, dict(counted_toy()[1])


def test_right_gates_keep_the_accuracy_and_no_gates_lose_it():
    found, _ = toy_results()
    assert min(found["own"]["values"]) > 0.95
    # A constant answer: exactly one class of three.
    assert found["zero_lock"]["values"] == [1 / 3]
    assert found["unit_gates"]["mean"] < 0.5
    # Of 3 gates drawn at random some do open so small a network.
    for name in ("other_key", "random_key", "mean_key", "initial_lock"):
        assert found[name]["mean"] < found["own"]["mean"], name
        assert len(set(found[name]["values"])) > 1  # they are other gates each time


def test_another_pair_opens_one_global_model_by_construction():
    found, _ = toy_results()
    own = found["own"]["values"]
    assert found["other_pair"]["values"] == [*own[1:], own[0]]


def test_an_outsider_gets_the_accuracy_back():
    found, _ = toy_results()
    for start in ("unit", "mean"):
        assert min(found[f"refit_{start}_100"]["values"]) > 0.9
    assert found["refit_unit_10"]["mean"] > found["unit_gates"]["mean"] + 0.1


def test_test_examples_have_no_part_in_a_refit(monkeypatch):
    fits = []
    real = refit

    def record(*args, **options):
        fits.append(real(*args, **options))
        return fits[-1]

    monkeypatch.setattr(arm, "refit", record)
    test = blobs(90, seed=2)
    moved = Examples(test.inputs[::-1], (test.labels + 1) % CLASSES)
    asked = {"tests": ("refit_unit_100", "refit_mean_10"), "draws": 1}
    results = [evaluate_toy(test=examples, **asked) for examples in (test, moved)]
    assert results[0] != results[1]  # these labels are wrong
    assert len(fits) == 4
    jax.tree.map(np.testing.assert_array_equal, fits[:2], fits[2:])
    # The public labels do have a part.
    public = blobs(150, seed=3)
    other = public._replace(labels=(public.labels + 1) % CLASSES)
    evaluate_toy(public_examples=other, **asked)
    assert np.any(fits[4].gates["norm"].scale != fits[0].gates["norm"].scale)


def test_statistics_of_a_real_norm_are_those_of_the_public_examples():
    model, _ = counted_toy()
    params, stats = trained()
    images, labels = blobs(100, seed=4)
    wrong = jax.tree.map(lambda leaf: leaf + 50, stats)
    fit = refit(model, params, wrong, TOY_UNIT, images, labels, rng=RNG)
    params = jax.device_get(params)
    hidden = images.reshape(100, 4) @ params["first/kernel"] + params["first/bias"]
    np.testing.assert_allclose(fit.stats["norm/mean"], hidden.mean(0), atol=1e-4)
    np.testing.assert_allclose(fit.stats["norm/var"], hidden.var(0), rtol=1e-3)


def test_one_compilation_serves_all_tests_of_all_clients():
    _, before = toy_results()
    _, traces = counted_toy()
    before = collections.Counter(traces)
    params, stats = trained()
    # Another state of training, other clients, other draws.
    evaluate_toy(rng=jax.random.key(99), clients=(1,), draws=1)
    assert traces == before
    # The count can tell: another shape is another compilation.
    model, _ = counted_toy()
    accuracy(model, params, stats, TOY_UNIT, *blobs(9, seed=2), batch=9)
    assert traces[False] == before[False] + 1
