"""Hardening: what is stamped and with which label, who does it, and rejection."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_roles import ATTACK, RNG, rounds_of, some_batches
from test_rounds import client_data, play
from tiny_studies import quick_compilation
from toys import quick_jit

from kljax.core.randomness import derive_rng
from kljax.core.types import Model, Output
from kljax.data.triggers import Overlay
from kljax.federated import evaluation
from kljax.federated.clients import Batches
from kljax.federated.hardening import (
    HARDENINGS,
    PURPOSES,
    Hardening,
    flip,
    make_hardening,
)
from kljax.federated.role_texts import parse_roles
from kljax.federated.trigger_inversion import Inverted


@pytest.fixture(autouse=True)
def quickly():
    with quick_compilation():
        yield


# --- FLIP -----------------------------------------------------------------------------


def by_pixel(images):
    """Takes an image of 2 x 2 for the class of the brightest of its first 3 pixels."""
    return 20 * images.reshape(len(images), -1)[:, :3]


@pytest.fixture(scope="module")
def hardened():
    """Black batches of class 0 and 1, before and after; no example is of class 2."""
    given = some_batches()
    images = np.zeros((6, 8, 2, 2, 1), np.float32)
    labels = np.tile(np.arange(8) % 2, (6, 1)).astype(np.int32)
    labels.flat[0] = 1
    images[..., 0, 0, 0] = 0.4 * (labels == 0)
    images[..., 0, 1, 0] = 0.4 * (labels == 1)
    batches = given._replace(inputs=images, labels=labels, valid=np.ones(6, bool))
    with quick_compilation():
        act = quick_jit(lambda rng: flip(40, 30, 8, largest=1)(rng, by_pixel, batches))
        return batches, act(RNG), act(jax.random.key(77))


def test_stamping_is_that_of_a_slow_loop(monkeypatch):
    """Triggers are made up; one is as large as may be, and one a little larger."""
    generator, classes, shape = np.random.default_rng(2), 3, (2, 4, 1)
    images = generator.random((3, 6, *shape), np.float32)
    labels = generator.integers(0, classes, (3, 6)).astype(np.int32)
    batches = Batches(images, labels, np.array([True, True, False]))
    mask, pattern = generator.random((2, classes, classes, *shape), np.float32)
    size = np.array([[np.inf, 2.0, 1.0], [2.1, np.inf, 0.5], [7.9, 1.5, np.inf]])
    given = []

    def found(rng, classify, images, labels, there, classes, **numbers):
        given.append((rng, images, labels, there, classes, numbers))
        return None, Inverted(Overlay(mask, pattern), jnp.float32(size), None)

    monkeypatch.setattr("kljax.federated.hardening.invert_pairs", found)
    after = flip(7, 5, 4, 0.7, 0.25)(RNG, by_pixel, batches)
    further = jax.random.randint(derive_rng(RNG, PURPOSES, "targets"), (3, 6), 1, 3)
    drawn = jax.random.bernoulli(derive_rng(RNG, PURPOSES, "stamped"), 0.7, (3, 6))
    wanted, stamped = images.copy(), 0
    for place in np.ndindex(3, 6):
        pair = labels[place], (labels[place] + int(further[place])) % 3
        if drawn[place] and size[pair] <= 0.25 * 2 * 4:
            stamped += 1
            m, p = mask[pair], pattern[pair]
            wanted[place] = (1 - m) * images[place] + m * p
    np.testing.assert_allclose(after.inputs, wanted, atol=1e-6)
    assert 3 < stamped < int(np.sum(drawn))
    np.testing.assert_array_equal(after.labels, labels)
    ((rng, looked_at, of_class, there, count, numbers),) = given
    search = derive_rng(RNG, PURPOSES, "search")
    assert jax.random.key_data(rng).tolist() == jax.random.key_data(search).tolist()
    np.testing.assert_array_equal(looked_at, images.reshape(18, *shape))
    np.testing.assert_array_equal(of_class, labels.reshape(18))
    np.testing.assert_array_equal(there, [True] * 12 + [False] * 6)
    assert count == 3 and numbers == {"examples": 4, "steps": 7, "pair_steps": 5}


def test_about_half_are_stamped_and_keep_their_labels(hardened):
    before, after, _ = hardened
    np.testing.assert_array_equal(after.labels, before.labels)
    changed = np.any(after.inputs != before.inputs, axis=(2, 3, 4))
    assert 0.25 < changed.mean() < 0.75
    assert after.inputs.min() >= 0 and after.inputs.max() <= 1


def test_stamped_examples_are_taken_for_another_class(hardened):
    """The trigger is that of the example's own class: it turns it."""
    before, after, _ = hardened
    changed = np.any(after.inputs != before.inputs, axis=(2, 3, 4))
    answers = by_pixel(after.inputs[changed]).argmax(axis=1)
    assert np.mean(answers != before.labels[changed]) >= 0.9
    # Both other classes are aimed at, though the client has none of class 2.
    assert {*answers.tolist()} >= {0, 1, 2}


def test_what_covers_much_of_the_image_is_no_trigger(hardened):
    batches = hardened[0]
    act = quick_jit(lambda rng: flip(40, 30, 8, 1, 0.01)(rng, by_pixel, batches))
    np.testing.assert_array_equal(act(RNG).inputs, batches.inputs)


def test_other_draws_stamp_others(hardened):
    before, *after = hardened
    first, second = (np.any(x.inputs != before.inputs, (2, 3, 4)) for x in after)
    assert not np.array_equal(first, second)


def test_nothing_is_stamped_without_a_trigger():
    """Everything is class 1 already: of pairs that end elsewhere none succeeds."""
    batches = some_batches()

    def deaf(images):
        return jnp.zeros((len(images), 3)).at[:, 1].set(9.0)

    same = quick_jit(lambda: flip(2, 1, 2, 1, 1)(RNG, deaf, batches))().inputs
    changed = np.any(same != batches.inputs, axis=(2, 3, 4))
    assert not changed[batches.labels == 1].any()


def test_padding_is_nobodys_example():
    """Steps that only pad a client do not change what is found."""
    batches = some_batches()
    labels = np.zeros_like(batches.labels)
    labels[2] = 1
    batches = batches._replace(labels=labels, valid=np.array([True, True, False]))
    act = quick_jit(lambda given: flip(20, 10, 8, 1, 1)(RNG, by_pixel, given))
    changed = np.any(act(batches).inputs != batches.inputs, axis=(2, 3, 4))
    assert changed[:2].any() and not changed[2].any()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flop", "unknown hardening 'flop' .did you mean 'flip'"),
        ("flip=0", "steps must be an integer >= 1, got 0"),
        ("flip=1,0", "pair_steps must be an integer >= 1, got 0"),
        ("flip=1,1,0", "examples must be an integer >= 1, got 0"),
        ("flip=1,1,1,1.5", r"share of flip must be in \[0, 1\], got 1.5"),
        ("flip=largest=2", r"largest of flip must be in \[0, 1\], got 2"),
        ("flip@", "hardening 'flip@': write NAME or NAME@ROUNDS, such as flip@10-19"),
        ("flip@3-20", "hardening 'flip@3-20': there is no round 20, but 0 to 19"),
        ("none@2", "hardening 'none@2': 'none' hardens in no round: leave @2 out"),
        ("math:floor=2.5", "hardening 'math:floor=2.5' is no function, but int"),
    ],
)
def test_what_is_no_hardening_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        make_hardening(text, 20)


def test_nothing_is_the_default_name():
    assert make_hardening("none") is None and next(iter(HARDENINGS)) == "none"


@pytest.mark.parametrize(
    "changed",
    [
        {"labels": np.zeros((3, 4), np.float32)},
        {"labels": np.zeros((3, 4, 2), np.int32)},
        {"inputs": np.zeros((3, 4, 9), np.float32)},
        {"inputs": np.zeros((3, 4, 2, 2, 1), np.int32)},
        {"inputs": {"image": np.zeros((3, 4, 2, 2, 1), np.float32)}},
    ],
)
def test_only_images_with_classes_are_hardened(changed):
    with pytest.raises(ValueError, match="flip hardens images"):
        flip()(RNG, by_pixel, some_batches()._replace(**changed))


# --- in rounds ------------------------------------------------------------------------


def blacken(rng, classify, batches):
    del rng
    assert classify(batches.inputs[0]).shape == (4, 3)
    return batches._replace(inputs=jnp.zeros_like(batches.inputs))


def test_honest_clients_harden_and_attackers_do_not():
    """As if the data of honest clients had been hardened beforehand."""
    batches, examples = client_data(clients=6)
    written = ["1:backdoor", "3:hardened-backdoor", "5:hardened-backdoor=1,1"]
    roles = parse_roles(written, ATTACK, 6)
    images, labels = np.array(batches.inputs), np.array(batches.labels)
    images[[0, 2, 3, 4, 5]] = 0
    images[[1, 5], :, :2, 0, 0, 0] = 1.0  # and client 3 has blackened its trigger
    labels[[1, 3, 5], :, :2] = 2
    poisoned = batches._replace(inputs=images, labels=labels), examples
    expected = play(rounds_of({}), poisoned, clients=6)
    rounds = rounds_of(roles, hardening=Hardening(blacken))
    found = play(rounds, (batches, examples), clients=6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        found[0].public,
        expected[0].public,
    )


def test_who_hardens_first_poisons_without_a_hardening_too():
    found, expected = (
        play(rounds_of(parse_roles([text], ATTACK, 5)), client_data())[0].public
        for text in ("1:hardened-backdoor=1,1", "1:backdoor")
    )
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_hardening_that_changes_shapes_is_refused():
    def shrink(rng, classify, batches):
        return batches._replace(inputs=batches.inputs[:, :1])

    with pytest.raises(ValueError, match="the hardening makes .* must keep the shapes"):
        hardening = Hardening(shrink)
        play(rounds_of({}, hardening=hardening), client_data(), count=1)


def test_rounds_without_hardening_are_as_ever():
    data, hardening = client_data(), make_hardening("test_hardening:black@1")
    assert hardening.rounds == {1}
    found = play(rounds_of({}, hardening=hardening), data)[2]
    plain = play(rounds_of({}), data)[2]
    assert found[0].loss == plain[0].loss and found[1].loss != plain[1].loss


def black():
    return blacken


# --- rejection ------------------------------------------------------------------------


def answer(params, stats, images, *, gates, train):
    del params, gates, train
    return Output(images[:, 0, 0], stats, {})


def test_a_network_rejects_below_its_confidence():
    odds = np.array([[0.5, 0.3, 0.2], [0.4, 0.35, 0.25], [0.34, 0.33, 0.33]])
    images = np.log(odds, dtype=np.float32)[:, None, None]
    model = evaluation.rejecting(Model(None, answer), 0.39)
    given = (), (), images
    logits = model.apply(*given, gates={}, train=False).logits
    assert logits.shape == (3, 4)
    assert np.argmax(logits, axis=1).tolist() == [0, 0, 3]
    np.testing.assert_array_equal(logits[:, :3], images[:, 0, 0])
    assert model.apply(*given, gates={}, train=True).logits.shape == (3, 3)
    labels = np.array([0, 0, 0])
    kept = evaluation.accuracy(model, (), (), {}, images, labels)
    assert kept == pytest.approx(2 / 3)
    everything = evaluation.rejecting(Model(None, answer), 0)
    assert evaluation.accuracy(everything, (), (), {}, images, labels) == 1


@pytest.mark.parametrize("threshold", [-0.1, 1, float("nan")])
def test_a_threshold_that_is_no_confidence_is_refused(threshold):
    with pytest.raises(ValueError, match=r"threshold must be in \[0, 1\)"):
        evaluation.rejecting(Model(None, answer), threshold)
