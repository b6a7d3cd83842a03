"""What of a model's answers is right: the measures of all targets."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from pixel_network import ONE, PIXELS, SEVEN, UNIT
from sklearn.metrics import r2_score
from tiny_studies import quick_compilation

from kljax.core.targets import distributions_of, numbers_of, sequences_of
from kljax.core.types import Gate, Model, Output
from kljax.federated.evaluation import Examples, accuracy, fedkl_accuracy_factor
from kljax.federated.evaluation.correctness import in_batches, measure


@pytest.fixture(autouse=True)
def quickly():
    with quick_compilation():
        yield


@pytest.mark.parametrize(
    ("labels", "right"),
    [
        ((0, 1, 2, 1, 0, 2, 1), 7),
        ((0, 1, 2, 1, 0, 2, 0), 6),
        ((1, 1, 1, 1, 1, 1, 1), 3),
        ((0, 0, 0, 0, 0, 0, 0), 2),
        ((2, 0, 1, 2, 1, 0, 0), 0),
    ],
)
@pytest.mark.parametrize("batch", (1, 3, 7, 500))
def test_accuracy_is_the_share_of_right_answers(labels, right, batch):
    found = accuracy(PIXELS, ONE, {}, {}, SEVEN, np.array(labels), batch=batch)
    assert found == right / 7


def test_what_fills_the_last_batch_is_not_counted():
    # Filled with zeros of label 0, and class 0 is what this model always says.
    gates = {"pixels": Gate(np.zeros(3, np.float32), np.array([1, 0, 0], np.float32))}
    labels = np.array([0, 1, 2, 1, 0, 2, 1])
    for batch in (2, 3, 4, 5, 6):
        found = accuracy(PIXELS, ONE, {}, gates, SEVEN, labels, batch=batch)
        assert found == 2 / 7
    # The test tells: counted, they would be right.
    images, labels, valid = in_batches(Examples(SEVEN, labels), "", 4)
    everything = (images, labels, np.ones_like(valid))
    assert measure(PIXELS, ONE, {}, gates, everything) == 3 / 8


@pytest.mark.parametrize("batch", (1, 3, 7, 100))
def test_numbers_are_measured_by_the_variance_that_is_explained(batch):
    """As sklearn does for all numbers of a target together."""
    outputs = SEVEN.reshape(7, 3)
    truths = outputs + np.random.default_rng(0).normal(0, 0.3, (7, 3))
    truths = truths.astype(np.float32)
    options = {"targets": numbers_of(3), "batch": batch}
    found = accuracy(PIXELS, ONE, {}, {}, SEVEN, truths, **options)
    wanted = r2_score(truths, outputs, multioutput="variance_weighted")
    assert found == pytest.approx(wanted, rel=1e-5) and found < 1
    assert accuracy(PIXELS, ONE, {}, {}, SEVEN, outputs, **options) == 1
    broken = {"pixels": Gate(np.full(3, np.nan, np.float32), np.zeros(3, np.float32))}
    assert np.isnan(accuracy(PIXELS, ONE, {}, broken, SEVEN, truths, **options))
    with pytest.raises(ValueError, match="are all alike, and there is no R2"):
        accuracy(PIXELS, ONE, {}, {}, SEVEN, np.ones((7, 3)), **options)
    with pytest.raises(ValueError, match=r"targets have shape \(7, 2\); numbers are"):
        accuracy(PIXELS, ONE, {}, {}, SEVEN, np.ones((7, 2)), **options)


def test_other_targets_are_measured_by_what_of_them_is_right():
    soft = np.array([[0.2, 0.5, 0.3]] * 7, np.float32)
    always = Gate(np.zeros(3, np.float32), np.array([0, 1, 0], np.float32))
    answers = functools.partial(accuracy, PIXELS, ONE, {}, {"pixels": always}, SEVEN)
    assert answers(soft, targets=distributions_of(3), batch=3) == 1
    assert answers(soft[:, [1, 0, 2]], targets=distributions_of(3), batch=3) == 0
    # Of tokens padding is not counted, and a sequence counts as one, however long.
    outputs = Model(
        PIXELS.init,
        lambda params, stats, images, **options: Output(
            jnp.zeros((len(images), 4, 5)).at[:, :, 2].set(1.0), stats, {}
        ),
    )
    tokens = np.array([[2, 2, -1, -1], [2, 0, 1, 2], [0, 1, -1, -1]])
    found = accuracy(
        outputs, ONE, {}, {}, SEVEN[:3], tokens, targets=sequences_of(4, 5), batch=2
    )
    assert found == pytest.approx((1 + 1 / 2 + 0) / 3)


def test_gates_change_the_answer():
    gates = {"pixels": Gate(-np.ones(3, np.float32), np.zeros(3, np.float32))}
    smallest = np.argmin(SEVEN.reshape(7, 3), axis=1)
    assert accuracy(PIXELS, ONE, {}, gates, SEVEN, smallest, batch=3) == 1
    assert accuracy(PIXELS, ONE, {}, UNIT, SEVEN, smallest, batch=3) == 0


def test_norm_statistics_are_the_running_ones():
    stats = {"mean": np.array([100, 0, 0], np.float32)}  # class 0 is never the answer
    labels = np.array([0, 1, 2, 1, 0, 2, 1])
    # Without pixel 0 two examples of class 0 have another answer; five stay.
    assert accuracy(PIXELS, ONE, stats, {}, SEVEN, labels, batch=4) == 5 / 7


def test_an_answer_with_a_nan_is_wrong():
    images = SEVEN.copy()
    images[2, 0, 0, 0] = np.nan  # the first NaN would be "the largest": class 0
    labels = np.array([0, 1, 0, 1, 0, 2, 1])
    assert accuracy(PIXELS, ONE, {}, {}, images, labels, batch=3) == 6 / 7
    broken = np.float32(np.nan)
    assert accuracy(PIXELS, broken, {}, {}, SEVEN, 0 * labels, batch=3) == 0


def test_factor_of_the_official_accuracy():
    factor = fedkl_accuracy_factor(10_000)
    assert factor == 10_000 / (64 * 157)
    assert 98.07 / factor == pytest.approx(98.54, abs=5e-3)  # FedKL, LeNet on MNIST
    assert fedkl_accuracy_factor(128) == 1
    with pytest.raises(ValueError, match="n and batch must be >= 1, got 0"):
        fedkl_accuracy_factor(0)
