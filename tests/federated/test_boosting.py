"""FedBoosting: weights, what others see, and how networks are tried on all examples."""

import functools

import jax
import numpy as np
import pytest
from slow_rules import CLIENTS, client, some_uploads, vectors
from test_aggregation import server_of, vector
from test_rounds import RNG, fetch_from, pixels, product
from tiny_studies import quick_compilation
from toys import LOCK, random_images, toy_model

from kljax.core.targets import classes_of, numbers_of
from kljax.core.types import Public
from kljax.defences import keylock, none
from kljax.federated.aggregation import (
    Gathered,
    Validation,
    fedboost_weights,
    fedboosting,
    fedboosting_accuracy,
    make_aggregator,
    mix_changes,
)
from kljax.federated.clients import Upload
from kljax.federated.evidence import HeldOut, cross_validation
from kljax.models.losses import cross_entropy

DRAWN = np.random.default_rng(2)
MEASURES = DRAWN.uniform(0.1, 3, (CLIENTS, CLIENTS)).astype(np.float32)
TRAINING = DRAWN.uniform(0.1, 3, CLIENTS).astype(np.float32)
ONES = np.ones(CLIENTS, np.float32)


@pytest.fixture(autouse=True)
def quickly():
    with quick_compilation():
        yield


def slow_weights(validation, training, metric):
    """The formulas of the published code, client by client."""
    count, found = len(training), []
    for i in range(count):
        v = sum(validation[i]) / count
        if metric == "loss":
            share = (1 / training[i]) / sum(1 / t for t in training)
            found.append(1 / v * share)
        else:
            found.append(v * training[i] / sum(training))
    return np.array(found) / sum(found)


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
def test_weights_are_their_slow_form(metric):
    found = fedboost_weights(MEASURES, TRAINING, metric)
    expected = slow_weights(MEASURES.astype(float), TRAINING.astype(float), metric)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    turned = fedboost_weights(MEASURES.T, TRAINING, metric)
    assert np.abs(turned - found).max() > 0.01
    # Clients in another order have their weights in that order.
    order = np.array([3, 0, 6, 1, 5, 2, 4])
    shuffled = fedboost_weights(MEASURES[order][:, order], TRAINING[order], metric)
    np.testing.assert_allclose(shuffled, found[order], rtol=1e-5)


def test_weights_by_hand():
    # Losses: means 1 and 2, training 1 and 3: 1 / 1 and 1 / 6, of 7 / 6.
    losses = np.array([[0.5, 1.5], [3.0, 1.0]], np.float32)
    training = np.array([1.0, 3.0], np.float32)
    np.testing.assert_allclose(fedboost_weights(losses, training), [6 / 7, 1 / 7], 1e-6)
    # As accuracies: 1 of 1 and 2 of 3.
    found = fedboost_weights(losses, training, "accuracy")
    np.testing.assert_allclose(found, [1 / 7, 6 / 7], 1e-6)
    nothing = fedboost_weights(np.zeros((2, 2)), np.zeros(2), "accuracy")
    assert nothing.tolist() == [0.5, 0.5]
    # A loss of 0 takes all, whatever is beyond float32 on the way.
    perfect = fedboost_weights(np.array([[0, 0], [1, 1.0]]), np.array([0, 1.0]))
    np.testing.assert_allclose(perfect, [1, 0], atol=1e-6)


def test_the_rules_are_weighted_sums():
    uploads, rows = some_uploads(), vectors(some_uploads())
    server = server_of(uploads)
    found = Validation(MEASURES, MEASURES[::-1].copy())
    for rule, metric, measured in (
        (fedboosting(), "loss", found.loss),
        (fedboosting_accuracy(), "accuracy", found.accuracy),
    ):
        assert rule.needs == (metric, "validation")
        needs = {metric: TRAINING, "validation": found}
        given, memory = jax.jit(rule.finish)(server, uploads, ONES, **needs)
        weights = slow_weights(measured.astype(float), TRAINING, metric)
        np.testing.assert_allclose(vector(given), weights @ rows, rtol=1e-4, atol=1e-6)
        assert memory == ()


def test_published_weights_are_rounded_and_do_not_sum_to_one():
    uploads, rows = some_uploads(), vectors(some_uploads())
    needs = {"loss": TRAINING, "validation": Validation(MEASURES, MEASURES)}
    weights = slow_weights(MEASURES.astype(float), TRAINING, "loss")
    for parts in (5, 100):
        counted = np.round(weights * parts) / parts
        rule = fedboosting(parts)
        given, _ = rule.finish(server_of(uploads), uploads, ONES, **needs)
        np.testing.assert_allclose(
            vector(given.delta), counted @ rows[:, :8], rtol=1e-4, atol=1e-6
        )
        mean = counted @ rows[:, 8:] / counted.sum()
        np.testing.assert_allclose(given.stats["mean"], mean, rtol=1e-4)
    assert abs(np.round(weights * 5).sum() - 5) > 0
    # Sevenths are rounded to 0: nothing moves, and statistics are still a mean.
    alike = Validation(np.ones((CLIENTS, CLIENTS)), None)
    needs = {"loss": ONES, "validation": alike}
    given, _ = fedboosting(1).finish(server_of(uploads), uploads, ONES, **needs)
    assert vector(given.delta).tolist() == [0] * 8
    np.testing.assert_allclose(given.stats["mean"], rows[:, 8:].mean(axis=0), rtol=1e-5)


def test_mixtures_by_hand():
    changes = {"w": np.array([[10.0], [1], [3]])}
    mixed = mix_changes(changes)["w"].ravel()
    assert mixed.tolist() == pytest.approx([9.2, 1.55, 3.25])
    # Not noise, and no secret: everybody's change can be had back from all mixtures.
    assert float(mixed.sum()) == pytest.approx(14)
    assert fedboosting(0, 1).needs == ("loss", "mixed_validation")


# --- how networks are tried --------------------------------------------------------


@functools.cache
def tried(mixed):
    """The toy network of three clients on the examples of three, of unlike numbers."""
    model = toy_model()
    params, stats = jax.device_get(model.init(RNG))
    draw = np.random.default_rng(6)
    server = server_of(Upload(Public(params), stats))._replace(
        public=Public(params), stats=stats
    )
    uploads = Upload(
        jax.tree.map(
            lambda x: draw.standard_normal((3, *x.shape)).astype(np.float32),
            server.public,
        ),
        jax.tree.map(
            lambda x: np.stack([x + n for n in range(3)]).astype(np.float32), stats
        ),
    )
    images, labels = random_images(3, 4, 2, 2, 1, seed=7), draw.integers(0, 3, (3, 4))
    valid = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]], bool)
    asked = []

    def held_out(ids):
        asked.append(np.asarray(ids).tolist())
        return HeldOut(images, labels.astype(np.int32), valid)

    find = cross_validation(
        model, cross_entropy, none(), held_out, classes_of(3), mixed=mixed
    )
    gathered = Gathered(np.array([0, 2, 5]), np.ones(3), uploads, *[np.ones(3)] * 2)
    found = find(RNG, server, gathered)
    assert asked == [[0, 2, 5]]
    return found, (model, server, uploads, images, labels, valid)


@pytest.mark.parametrize("mixed", [False, True])
def test_networks_are_tried_one_by_one_on_each_example(mixed):
    found, (model, server, uploads, images, labels, valid) = tried(mixed)
    changes = mix_changes(uploads.delta) if mixed else uploads.delta
    for i in range(3):
        public = jax.tree.map(lambda x, y, i=i: x + y[i], server.public, changes)
        stats = client(uploads.stats, i)
        logits = model.apply(
            public.model, stats, images.reshape(12, 2, 2, 1), train=False
        ).logits
        logits = np.asarray(logits, np.float64).reshape(3, 4, 3)
        for j in range(3):
            losses, right = [], []
            for row, label in zip(
                logits[j][valid[j]], labels[j][valid[j]], strict=True
            ):
                losses.append(np.log(np.sum(np.exp(row - row.max()))) + row.max())
                losses[-1] -= row[label]
                right.append(np.argmax(row) == label)
            assert found.loss[i, j] == pytest.approx(np.mean(losses), rel=1e-3)
            assert found.accuracy[i, j] == pytest.approx(np.mean(right))


def test_what_cannot_be_tried_by_others_is_refused():
    given = toy_model(), cross_entropy
    with pytest.raises(ValueError, match="a validation by others needs networks that"):
        cross_validation(*given, keylock(LOCK), None, classes_of(3))
    with pytest.raises(ValueError, match="counts what is right, and of numbers"):
        cross_validation(*given, none(), None, numbers_of(3))


def test_boosting_in_rounds():
    # w = 1 goes to .5 and .875; the losses while training are .5 and .125.
    def validation(rng, server, gathered):
        del rng, server
        assert gathered.loss.tolist() == [0.5, 0.125]
        return Validation(np.ones((2, 2)), np.ones((2, 2)))

    rule = make_aggregator("fedboosting")
    rounds = product(aggregator=rule, evidence={"validation": validation})
    server = rounds.init(RNG)
    states = rounds.init_clients(RNG, server, 2)
    fetch = fetch_from(pixels(1.0, 0.5, examples=[9, 1]))
    server, _ = rounds.run_round(RNG, server, states, np.arange(2), fetch)
    weight = float(server.public.model["fc/kernel"][0, 0])
    assert weight == pytest.approx(0.2 * 0.5 + 0.8 * 0.875)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fedboosting=-1", "fedboosting rounds weights to parts of a whole number"),
        ("fedboosting=.5", "fedboosting rounds weights to parts .* got 0.5"),
        ("fedboosting-accuracy=mixed=2", "fedboosting-accuracy mixes by 1, or not by"),
    ],
)
def test_what_is_no_boosting_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        make_aggregator(text)


def test_weights_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"must be \[n, n\] and training \[n\], got"):
        fedboost_weights(np.ones((2, 3)), np.ones(2))
    with pytest.raises(ValueError, match="metric must be 'loss' or 'accuracy', got 'a"):
        fedboost_weights(np.ones((2, 2)), np.ones(2), "acc")
