"""What a trained model is worth: with its gates, with others, with re-fitted ones."""

import functools

import jax
import numpy as np
import pytest
from pixel_network import ONE, PIXELS, SEVEN, UNIT, apply_pixels
from tiny_studies import quick_compilation
from toys import quick_jit

from kljax.core.types import Gate, Model, Private, Public
from kljax.defences import (
    chain,
    gaussian_noise,
    keylock,
    none,
    plaintext_gates,
    unit_gates,
)
from kljax.defences.lock import key_lock
from kljax.federated import evaluation
from kljax.federated.evaluation import (
    TESTS,
    Examples,
    Insider,
    Outsider,
    arm,
    chosen_clients,
    evaluate,
    refit,
    refitting,
)
from kljax.models.losses import squared_error

RNG = jax.random.key(11)


@pytest.fixture(autouse=True)
def quickly():
    with quick_compilation():
        yield


# --- re-fitting ------------------------------------------------------------------


def public_pixels(count, seed=3):
    generator = np.random.default_rng(seed)
    images = generator.normal(size=(count, 1, 1, 3)).astype(np.float32)
    noisy = images.reshape(count, 3) + generator.normal(size=(count, 3))
    return images, np.argmax(noisy, axis=1)


@pytest.mark.parametrize("count", (10, 100))
def test_refitted_gates_are_those_of_least_squares(count):
    """Squared error: per class, a line through (pixel, is it this class?)."""
    images, labels = public_pixels(count)
    found = refit(PIXELS, ONE, {}, UNIT, images, labels, rng=RNG, loss=squared_error)
    assert found.stats == {}  # a network without norm statistics
    for c in range(3):
        line = np.polyfit(images[:, 0, 0, c], labels == c, 1)
        gate = found.gates["pixels"]
        np.testing.assert_allclose([gate.scale[c], gate.shift[c]], line, atol=2e-3)


@pytest.mark.parametrize("momentum", (0.9, 0.99, 0.0))
def test_norm_statistics_become_those_of_the_public_examples(momentum):
    images, labels = public_pixels(250)
    images = images + np.float32(3)
    stats = {"mean": np.full(3, 1e3, np.float32)}
    model = Model(PIXELS.init, functools.partial(apply_pixels, momentum=momentum))
    start = model, ONE, stats, UNIT
    fit = refit(*start, images[:20], labels[:20], rng=RNG, steps=1)
    mean = images[:20].reshape(20, 3).mean(axis=0)
    np.testing.assert_allclose(fit.stats["mean"], mean, rtol=1e-3)


def test_statistics_that_are_never_updated_stay():
    update = quick_jit(lambda stats: {"mean": 0.9 * stats["mean"] + 5, "n": stats["n"]})
    stats = {"mean": np.float32(7), "n": np.float32(4)}
    found = refitting._of_minibatch(update, stats)
    assert found["mean"] == pytest.approx(50, rel=1e-5)
    assert found["n"] == 4


def test_every_epoch_shuffles_and_drops_what_is_left_over():
    rows = refitting._minibatches(np.random.default_rng(0), 250, 5)
    assert rows.shape == (5, 100)
    epochs = rows[:4].reshape(2, 200)
    for epoch in epochs:
        assert len(set(epoch.tolist())) == 200
    assert set(epochs[0].tolist()) != set(epochs[1].tolist())
    assert rows.min() >= 0 and rows.max() < 250
    rows = refitting._minibatches(np.random.default_rng(0), 7, 3)
    np.testing.assert_array_equal(np.sort(rows, axis=1), np.tile(np.arange(7), (3, 1)))


# --- gates of each test, on paper -------------------------------------------------

PAIR = key_lock(("pixels",), (3,), size=2, activation=lambda x: x)


def lock_weights(scale, shift, bias=0.0):
    def dense(rows, bias):
        return {
            "kernel": np.array(rows, np.float32),
            "bias": np.full(3, bias, np.float32),
        }

    return ({"scale": dense(scale, bias), "shift": dense(shift, 0.0)},)


OWN = lock_weights([[1, 2, 3], [4, 5, 6]], [[1, 0, 0], [0, 1, 0]], bias=1)
OTHER = lock_weights([[1, 1, 1], [2, 2, 2]], [[0, 0, 1], [0, 0, 1]])
INITIAL = lock_weights([[2, 0, 0], [0, 2, 0]], [[0, 0, 0], [0, 0, 4]])
SECRETS = np.array([[1, 0], [0, 1], [2, 2]], np.float32)  # own, other, fresh
ON_PAPER = {
    "own": ([2, 3, 4], [1, 0, 0]),
    "other_pair": ([2, 2, 2], [0, 0, 1]),
    "other_key": ([5, 6, 7], [0, 1, 0]),
    "random_key": ([11, 15, 19], [2, 2, 0]),
    "mean_key": ([3.5, 4.5, 5.5], [0.5, 0.5, 0]),
    "initial_lock": ([2, 0, 0], [0, 0, 0]),
    "zero_lock": ([0, 0, 0], [0, 0, 0]),
}
REFITS = {f"refit_{start}_{n}" for start in ("unit", "mean") for n in (10, 100, 1000)}


def test_every_test_is_in_the_table():
    assert set(TESTS) == set(ON_PAPER) | {"unit_gates"} | REFITS
    for name, one in TESTS.items():
        assert one.words and set(one.needs) <= set(evaluation.FACTS), name
        assert set(one.per) <= {"client", "draw"}
        assert one.examples == (int(name.split("_")[2]) if name in REFITS else 0)


@pytest.mark.parametrize("name", ON_PAPER)
def test_gates_of_a_client(name):
    defence = keylock(PAIR)
    me = Insider(
        lambda private: defence.gates((), private),
        Private(SECRETS[0], OWN),
        Private(SECRETS[1], OTHER),
        INITIAL,
        lambda: SECRETS[2],
    )
    assert not TESTS[name].outside
    (gate,) = TESTS[name].gates(me).values()
    np.testing.assert_allclose(gate, ON_PAPER[name], rtol=1e-6)


@pytest.mark.parametrize("name", sorted(REFITS | {"unit_gates"}))
def test_gates_of_an_outsider(name):
    they = Outsider(unit={"a": "unit"}, mean={"a": "mean"})
    assert TESTS[name].outside
    expected = "mean" if "mean" in name else "unit"
    assert TESTS[name].gates(they) == {"a": expected}
    # There is nothing private that it could be made of.
    assert Outsider._fields == ("unit", "mean")


def test_the_mean_start_is_the_constant_key_through_the_initial_lock(monkeypatch):
    starts = []

    def record(model, params, stats, gates, images, labels, **options):
        starts.append(gates)
        return evaluation.Refitted(gates, stats)

    monkeypatch.setattr(arm, "refit", record)
    found = evaluate_pixels(
        tests=("refit_mean_10", "refit_unit_10"), initial_lock_weights=INITIAL, draws=1
    )
    assert found.keys() == {"refit_mean_10", "refit_unit_10"}
    unit, mean = (start["pixels"] for start in starts)
    np.testing.assert_array_equal(unit, UNIT["pixels"])
    np.testing.assert_allclose(mean, [[1, 1, 0], [0, 0, 2]])


# --- which tests an arm has -------------------------------------------------------

PUBLIC = Examples(*public_pixels(10))
TWO = [Private(SECRETS[0], OWN), Private(SECRETS[1], OTHER)]
SMALL = tuple(name for name in TESTS if TESTS[name].examples <= 10)


def evaluate_pixels(defence=None, privates=TWO, gates=(), stats=None, **options):
    options = {
        "unit_gates": UNIT,
        "test": Examples(SEVEN, np.array([0, 1, 2, 1, 0, 2, 1])),
        "public_examples": PUBLIC,
        "rng": RNG,
        "tests": SMALL,
        "draws": 2,
        "steps": 1,
        "batch": 3,
    } | options
    defence = defence or LOCKED
    return evaluate(
        PIXELS, defence, Public(ONE, gates), stats or {}, privates, **options
    )


LOCKED = keylock(PAIR)
PLAINTEXT = plaintext_gates(unit_gates(("pixels",), (3,)))
PUBLIC_GATES = {"pixels": Gate(-np.ones(3, np.float32), np.zeros(3, np.float32))}
KEYED = ("own", "random_key", "mean_key", "zero_lock", "unit_gates", "refit_unit_10")
ARMS = {
    "no sites": ({"defence": none(), "unit_gates": {}}, ("own",)),
    "sites, no gates": ({"defence": none()}, ("own", "refit_unit_10")),
    "noise": (
        {"defence": chain(none(), gaussian_noise(1.0))},
        ("own", "refit_unit_10"),
    ),
    "no public examples": ({"defence": none(), "public_examples": None}, ("own",)),
    "plaintext": (
        {"defence": PLAINTEXT, "gates": PUBLIC_GATES},
        ("own", "unit_gates", "refit_unit_10"),
    ),
    "one client": ({"privates": TWO[:1]}, KEYED),
    "two clients": ({}, (*KEYED, "other_pair", "other_key")),
    "initial": (
        {"privates": TWO[:1], "initial_lock_weights": INITIAL},
        (*KEYED, "initial_lock", "refit_mean_10"),
    ),
    "mean gates, no lock": (
        {"defence": none(), "mean_gates": UNIT},
        ("own", "refit_unit_10", "refit_mean_10"),
    ),
    "asked": ({"tests": ("mean_key", "own", "initial_lock")}, ("own", "mean_key")),
}


@pytest.mark.parametrize(("options", "expected"), ARMS.values(), ids=ARMS)
def test_what_has_no_meaning_for_an_arm_is_absent(options, expected):
    if options.get("defence") is not None:
        options = {"privates": [Private()] * 5} | options
    found = evaluate_pixels(**options)
    assert list(found) == [name for name in TESTS if name in expected]
    for name, summary in found.items():
        values = summary["values"]
        assert summary["mean"] == pytest.approx(np.mean(values))
        spread = np.std(values, ddof=1) if len(values) > 1 else 0
        assert summary["std"] == pytest.approx(spread)
        private = options.get("privates", TWO)
        clients = len(private) if jax.tree.leaves(private) else 1
        expected = 1
        for axis, length in (("client", clients), ("draw", 2)):
            expected *= length if axis in TESTS[name].per else 1
        assert len(values) == expected, name


def test_values_worked_out_on_paper():
    found = evaluate_pixels(tests=("own", "other_pair", "other_key", "zero_lock"))
    x = SEVEN.reshape(7, 3)
    labels = np.array([0, 1, 2, 1, 0, 2, 1])

    def value(secret, weights):
        scale, shift = (
            secret @ weights[0][n]["kernel"] + weights[0][n]["bias"]
            for n in ("scale", "shift")
        )
        return float(np.mean(np.argmax(scale * x + shift, axis=1) == labels))

    own, other = value(SECRETS[0], OWN), value(SECRETS[1], OTHER)
    assert own != other
    assert found["own"]["values"] == [own, other]
    assert found["other_pair"]["values"] == [other, own]
    crossed = [value(SECRETS[1], OWN), value(SECRETS[0], OTHER)]
    assert found["other_key"]["values"] == crossed
    assert found["zero_lock"]["values"] == [2 / 7]  # all equal: class 0


def test_refitted_gates_and_statistics_are_what_is_evaluated(monkeypatch):
    stats = {"mean": np.array([100, 0, 0], np.float32)}
    right = {"mean": np.zeros(3, np.float32)}
    asked = {"defence": none(), "tests": ("own", "refit_unit_10"), "draws": 1}
    # What the server's statistics, and then each re-fitted part, are worth.
    for gates, norm, worth in (
        (UNIT, stats, 5 / 7),
        (UNIT, right, 1),
        (PUBLIC_GATES, right, 0),
    ):
        fit = evaluation.Refitted(gates, norm)
        monkeypatch.setattr(arm, "refit", lambda *_, fit=fit, **__: fit)
        found = evaluate_pixels(privates=Private(), stats=stats, **asked)
        assert found["own"]["values"] == [5 / 7]
        assert found["refit_unit_10"]["values"] == [worth]


def test_plaintext_gates_count_and_can_be_stripped():
    found = evaluate_pixels(PLAINTEXT, [Private()], PUBLIC_GATES)
    assert found["own"]["values"] == [0]  # the smallest pixel, in place of the largest
    assert found["unit_gates"]["values"] == [1]


def test_stacked_clients_are_the_listed_ones():
    three = [*TWO, Private(SECRETS[2], OTHER)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *three)
    asked = {"tests": ("own", "other_key", "random_key")}
    listed = evaluate_pixels(privates=three, **asked)
    assert evaluate_pixels(privates=stacked, **asked) == listed
    some = evaluate_pixels(privates=three, clients=(2, 0), **asked)
    for name in ("own", "other_key"):
        assert some[name]["values"] == [listed[name]["values"][c] for c in (2, 0)]
    draws = np.reshape(listed["random_key"]["values"], (3, 2))
    assert some["random_key"]["values"] == draws[[2, 0]].ravel().tolist()


def test_fresh_keys_differ_by_client_and_draw(monkeypatch):
    keys = []
    make = arm._fresh_key
    monkeypatch.setattr(
        arm, "_fresh_key", lambda *args: keys.append(make(*args)) or keys[-1]
    )
    evaluate_pixels(tests=("random_key",), draws=3)
    assert len({tuple(key.tolist()) for key in keys}) == 6
    assert all(key.shape == (2,) and key.min() >= 0 and key.max() < 1 for key in keys)


def test_the_clients_chosen():
    assert chosen_clients(1) == (0,)
    assert chosen_clients(8) == tuple(range(8))
    assert chosen_clients(4096) == tuple(range(0, 4096, 512))
    for count in range(1, 40):
        assert len(set(chosen_clients(count))) == min(count, 8)
        assert max(chosen_clients(count)) < count


def test_larger_draws_of_public_examples_contain_the_smaller():
    examples = Examples(*public_pixels(50))
    small, large = (arm._drawn(examples, n, RNG).inputs for n in (10, 30))
    np.testing.assert_array_equal(small, large[:10])
    assert len({image.tobytes() for image in large}) == 30
    other = arm._drawn(examples, 10, jax.random.key(12)).inputs
    assert not np.array_equal(small, other)


# --- bad input --------------------------------------------------------------------

NO_EXAMPLES = Examples(SEVEN[:0], np.zeros(0, int))
THREE_LABELS = Examples(SEVEN, np.arange(3))
REFUSED = {
    "unknown test": ({"tests": ("onw",)}, "unknown test 'onw'.*did you mean 'own'"),
    "no draws": ({"draws": 0}, "draws must be >= 1, got 0"),
    "no batch": ({"batch": 0}, "batch must be >= 1, got 0"),
    "no test examples": ({"test": NO_EXAMPLES}, "test: no examples"),
    "no public": ({"public_examples": NO_EXAMPLES}, "public_examples: no examples"),
    "unequal": ({"test": THREE_LABELS}, "test: 7 images, but 3 labels"),
    "one-hot": (
        {"test": Examples(SEVEN, np.eye(7))},
        r"test: labels must be integers \[n\], got float64\(7, 7\)",
    ),
    "too few": (
        {"tests": ("refit_unit_100",)},
        "'refit_unit_100' needs 100 public examples, there are 10",
    ),
    "no clients": ({"privates": []}, "privates is empty"),
    "unknown client": ({"clients": (0, 2)}, "no client 2: there are 2"),
    "nobody": ({"clients": ()}, "clients is empty"),
    "not stacked": ({"privates": TWO[0]}, r"one leading axis of clients, got \[\(2,\)"),
    "another lock": (
        {"privates": [Private(SECRETS[0][:1], OWN)]},
        "a client's private parts: shapes",
    ),
    "stacked lock": (
        {"initial_lock_weights": jax.tree.map(lambda x: x[None], INITIAL)},
        "initial_lock_weights: shapes",
    ),
    "unknown site": ({"unit_gates": {}}, r"gates at \['pixels'\], unit_gates has \[\]"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        evaluate_pixels(**options)


def test_a_refit_needs_gates_and_steps():
    with pytest.raises(ValueError, match="start_gates names no site"):
        refit(PIXELS, ONE, {}, {}, *PUBLIC, rng=RNG)
    with pytest.raises(ValueError, match="steps must be >= 1, got 0"):
        refit(PIXELS, ONE, {}, UNIT, *PUBLIC, rng=RNG, steps=0)
    with pytest.raises(ValueError, match="refit: no examples"):
        refit(PIXELS, ONE, {}, UNIT, *NO_EXAMPLES, rng=RNG)
