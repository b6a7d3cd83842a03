"""Targets: what is stored, what is trained towards, and how a guess is scored."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from toys import quick_jit

from kljax import data
from kljax.core.inputs import images_of, several_of
from kljax.core.targets import (
    UNKNOWN,
    classes_of,
    distributions_of,
    numbers_of,
    sequences_of,
)
from kljax.core.types import Private, Public
from kljax.data.sentences import sentences_of
from kljax.defences import none
from kljax.federated.clients import Batches, local_training
from kljax.models import from_nnx, losses
from kljax.studies.builder.run_setup import _find_attack
from kljax.studies.config import TrainConfig

RAMP = np.linspace(0, 1, 4 * 3 * 3, dtype=np.float32).reshape(4, 3, 3, 1)
SOFT = np.float32([[0.5, 0.5, 0], [1, 0, 0], [0, 0.25, 0.75], [0.2, 0.3, 0.5]])
TOKENS = np.array([[1, 2, 0], [3, 3, -1], [0, -1, -1], [2, 1, 3]])
PRICES = np.float32([[0.5], [-1.25], [3.0], [0.0]])
SPECS = {
    "classes": (classes_of(3), np.array([0, 2, 1, 0])),
    "distributions": (distributions_of(3), SOFT),
    "sequences": (sequences_of(3, 4), TOKENS),
    "numbers": (numbers_of(1), PRICES),
}


def dataset(targets, labels, num_classes=None, **changes):
    fields = {"groups": None, "licence": "drawn"} | changes
    return data.Dataset("toy", RAMP, labels, num_classes, target_spec=targets, **fields)


@pytest.mark.slow
@pytest.mark.parametrize("kind", SPECS)
def test_what_is_stored_comes_back_from_what_is_trained_towards(kind):
    spec, stored = SPECS[kind]
    toy = dataset(spec, stored)
    _, labels = toy.fetch([2, 0])
    assert labels.dtype == spec.dtype and labels.shape[1:] == spec.stored
    encoded = spec.encode(jnp.asarray(labels))
    assert encoded.shape == (2, *spec.shape) and spec.outputs == spec.shape[-1]
    found = np.asarray(spec.decode(encoded))
    real = labels >= 0 if kind == "sequences" else np.ones(labels.shape, bool)
    np.testing.assert_array_equal(found[real], labels[real])
    # Whoever does not know them looks among what a target can be.
    free = jax.random.normal(jax.random.key(0), (2, *spec.shape))
    guess = spec.constrain(free)
    if kind != "numbers":
        np.testing.assert_allclose(jnp.sum(guess, axis=-1), 1, rtol=1e-5)
    assert toy.num_classes == (3 if kind in ("classes", "distributions") else None)
    assert data.subset(toy, [1, 3]).target_spec is spec
    images, targets = data.fetch_batches(toy, [[0, 1], [2, 2]])
    assert images.shape == (2, 2, 3, 3, 1) and targets.shape == (2, 2, *spec.stored)


@pytest.mark.parametrize(
    ("kind", "labels", "message"),
    (
        ("classes", [0, 3, 1, 0], r"example 1 .*label 3.*\[0, 3\)"),
        ("classes", np.zeros((4, 1), int), "labels .* shape .*give a list"),
        ("distributions", SOFT * 2, "example 0 .*sum to 2.*sum to 1"),
        ("distributions", SOFT[:, :2], r"shape \(4, 2\); give \[n, 3\]"),
        ("sequences", TOKENS + 1, r"example 1 .* 0 to 4; .*\[0, 4\)"),
        ("sequences", -np.ones((4, 3), int), "one token is needed"),
        ("numbers", PRICES * np.nan, "example 0 .*nan.*finite"),
        ("numbers", PRICES.astype(np.float64) * 1e300, "example 0 .*e.299.*float32"),
        ("numbers", PRICES[:, 0], r"shape \(4,\); give \[n, 1\]"),
        ("numbers", PRICES[:3], "4 images and 3 labels"),
    ),
)
def test_what_is_no_target_is_refused_by_its_row(kind, labels, message):
    with pytest.raises(ValueError, match=message):
        dataset(SPECS[kind][0], labels)


@pytest.mark.parametrize("kind", ("distributions", "numbers"))
def test_integers_are_no_numbers(kind):
    with pytest.raises(TypeError, match="int64; give floating point"):
        dataset(SPECS[kind][0], np.zeros((4, 3), int))


def test_a_number_of_classes_beside_targets_must_be_theirs():
    assert dataset(*SPECS["distributions"], 3).num_classes == 3
    with pytest.raises(ValueError, match="num_classes .* is 2, .*numbers.*give None"):
        dataset(*SPECS["numbers"], 2)
    with pytest.raises(ValueError, match="the rule needs targets that are classes"):
        numbers_of().require_classes("the rule")
    with pytest.raises(ValueError, match="the number of targets is 0"):
        numbers_of(0)


def test_guesses_are_scored_by_what_targets_are():
    def scores(kind, guesses):
        spec, truths = SPECS[kind]
        return spec.score(np.asarray(guesses), truths)

    assert scores("classes", [0, 1, 1, UNKNOWN])["label_accuracy"].tolist() == [
        1,
        0,
        1,
        0,
    ]
    # By hand: of three, two and one real tokens; padding counts for nothing.
    found = scores("sequences", [[1, 0, 0], [3, 1, 2], [0, 1, 1], [0, 0, 0]])
    np.testing.assert_allclose(found["target_accuracy"], [2 / 3, 1 / 2, 1, 0])
    found = scores("numbers", PRICES + [[1], [-2], [0], [0.5]])
    np.testing.assert_allclose(found["target_error"], [1, 2, 0, 0.5])
    found = scores("distributions", SOFT[[0, 0, 2, 3]])
    np.testing.assert_allclose(found["target_error"], [0, 1 / 3, 0, 0])
    assert found["label_accuracy"].tolist() == [1, 1, 1, 1]


def test_poisoned_padding_neither_trains_nor_scores():
    spec, tokens = SPECS["sequences"]
    targets = spec.encode(tokens)
    logits = jax.random.normal(jax.random.key(1), targets.shape)
    padding = (tokens < 0)[..., None]
    value, slope = jax.value_and_grad(losses.cross_entropy)(logits, targets)
    # Slow: the mean over the nine real tokens, one after another.
    rows = [
        -jax.nn.log_softmax(logits[n, t])[token]
        for n, row in enumerate(tokens)
        for t, token in enumerate(row)
        if token >= 0
    ]
    np.testing.assert_allclose(value, np.mean(rows), rtol=1e-6)
    for poison in (1e30, np.inf, np.nan):
        poisoned = jnp.where(padding, poison, logits)
        again, other = jax.value_and_grad(losses.cross_entropy)(poisoned, targets)
        assert again == value
        np.testing.assert_array_equal(other, slope)
        assert np.all(np.asarray(other)[np.broadcast_to(padding, other.shape)] == 0)
    guesses = np.where(tokens < 0, 3, tokens)
    assert spec.score(guesses, tokens)["target_accuracy"].tolist() == [1, 1, 1, 1]
    one_hot = jax.nn.one_hot(guesses, 4)
    np.testing.assert_array_equal(spec.right(one_hot, jnp.asarray(tokens)), 1)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_losses_say_which_targets_they_fit(name):
    for kind in SPECS:
        if kind in losses.TARGETS[name]:
            losses.check_fits(name, kind)
        else:
            with pytest.raises(ValueError, match=f"{name}.* does not fit .*{kind}"):
                losses.check_fits(name, kind)
    losses.check_fits("mine:loss", "numbers")


# --- several inputs ------------------------------------------------------------------

ROWS = dataclasses.replace(
    images_of((2,)), kind="mine:ROWS", check=lambda x, rows, name: np.float32(x)
)
BOTH = several_of({"image": images_of((3, 3, 1)), "row": ROWS}, primary="image")
COLUMNS = {"image": RAMP, "row": np.arange(8.0).reshape(4, 2)}


def test_several_inputs_are_a_tree_of_columns():
    toy = data.Dataset(
        "both", COLUMNS, [0, 1, 0, 1], 2, groups=None, licence="-", input_spec=BOTH
    )
    assert toy.shape == {"image": (3, 3, 1), "row": (2,)} and len(toy) == 4
    inputs, labels = toy.fetch([3, 1])
    np.testing.assert_array_equal(inputs["row"], [[6, 7], [2, 3]])
    np.testing.assert_array_equal(BOTH.primary_of(inputs), RAMP[[3, 1]])
    assert BOTH.input_of(inputs, "row") is inputs["row"]
    assert BOTH.primary_spec.kind == "image" and inputs["row"].dtype == np.float32
    assert list(BOTH.scored) == ["image", "row"] and list(ROWS.scored) == [None]
    batches, _ = data.fetch_batches(data.subset(toy, [2, 3]), [[0, 1]])
    np.testing.assert_array_equal(batches["row"], [[[4, 5], [6, 7]]])
    empty, _ = toy.fetch([])
    assert empty["image"].shape == (0, 3, 3, 1)
    drawn, zeros = BOTH.draw(jax.random.key(0), 5), BOTH.zeros(5)
    for name, shape in BOTH.shape.items():
        assert drawn[name].shape == zeros[name].shape == (5, *shape)


@pytest.mark.parametrize(
    ("columns", "message"),
    (
        ({"image": RAMP}, "must be a mapping of image, row, got image"),
        (COLUMNS | {"row": np.zeros((3, 2))}, r"lengths \[3, 4\]"),
        (RAMP, "must be a mapping of image, row, got ndarray"),
        (
            COLUMNS | {"image": RAMP * 0 + 0.5},
            "image 0 of image of dataset 'both' is constant",
        ),
    ),
)
def test_what_are_not_these_inputs_is_refused(columns, message):
    with pytest.raises(ValueError, match=message):
        data.Dataset(
            "both", columns, [0, 1, 0, 1], 2, groups=None, licence="-", input_spec=BOTH
        )


def test_several_columns_need_a_spec():
    both = {"groups": None, "licence": "-"}
    with pytest.raises(
        ValueError, match=r"\(image, row\), which need input_spec=several_of"
    ):
        data.Dataset("both", COLUMNS, [0, 1, 0, 1], 2, **both)
    with pytest.raises(
        ValueError, match=r"\(image, row\), which need input_spec=several_of"
    ):
        data.check_batch(COLUMNS, [0, 1, 0, 1], 2)
    scalar = COLUMNS | {"row": 3.0}
    with pytest.raises(ValueError, match="row of .*'both' is a scalar; give a column"):
        data.Dataset("both", scalar, [0, 1, 0, 1], 2, input_spec=BOTH, **both)


def test_a_network_is_told_one_vocabulary():
    words = [f"▁{n}" for n in range(6)]
    texts = {"one": sentences_of(3, words), "two": sentences_of(2, words)}
    assert several_of(texts, primary="one").sizes["vocabulary"] == 6
    texts["two"] = sentences_of(2, words[:4])
    with pytest.raises(ValueError, match="'one' and 'two' have vocabulary 6 and 4"):
        several_of(texts, primary="one")


def test_a_guess_that_is_not_a_number_is_of_no_class():
    score = distributions_of(3).score
    guesses = np.full((2, 3), np.nan, np.float32)
    np.testing.assert_array_equal(
        score(guesses, SOFT[1:3])["label_accuracy"], [0.0, 0.0]
    )
    np.testing.assert_array_equal(score(SOFT, SOFT)["label_accuracy"], np.ones(4))


def test_several_inputs_have_names_once_and_a_primary_one():
    with pytest.raises(ValueError, match="primary='x' is no input; they are image"):
        several_of({"image": images_of((3, 3, 1))}, primary="x")
    with pytest.raises(ValueError, match="input 'both' has several inputs itself"):
        several_of({"both": BOTH}, primary="both")


class Sum(nnx.Module):
    """A weighted sum of two inputs."""

    def __init__(self, *, rngs):
        self.weights = nnx.Linear(3, 1, use_bias=False, rngs=rngs)

    def __call__(self, inputs):
        joined = jnp.concatenate([inputs["one"], inputs["two"]], axis=1)
        return self.weights(joined)


def test_a_client_trains_towards_numbers_on_several_inputs():
    """Two steps of gradient descent on a regression, by hand."""
    model = from_nnx(lambda rngs: Sum(rngs=rngs))
    rate, generator = 0.1, np.random.default_rng(3)
    rows = generator.normal(size=(2, 4, 3)).astype(np.float32)  # [T, B, ...]
    prices = generator.normal(size=(2, 4, 1)).astype(np.float32)
    training = local_training(
        model,
        losses.squared_error,
        none(),
        optax.sgd(rate),
        targets=numbers_of(1),
    )
    params, stats = model.init(jax.random.key(0))
    state = training.init(Public(params), Private())
    inputs = {"one": rows[..., :1], "two": rows[..., 1:]}
    batches = Batches(inputs, prices, np.ones(2, bool))
    run = quick_jit(training.run)
    upload, _, progress = run(
        jax.random.key(1), jnp.asarray(0), Public(params), stats, state, batches
    )
    weights = start = np.asarray(params["weights/kernel"], np.float64)
    for x, y in zip(rows, prices, strict=True):
        weights = weights - rate * x.T @ (x @ weights - y) / 4
    found = upload.delta.model["weights/kernel"]
    np.testing.assert_allclose(found, weights - start, rtol=1e-4, atol=1e-6)
    assert np.isfinite(progress.loss) and np.isnan(progress.accuracy)


def test_a_target_class_of_targets_that_are_none_is_refused_by_name():
    config = TrainConfig(model="m", data="d", roles=("0:backdoor",))
    prices = dataset(numbers_of(1), PRICES)
    with pytest.raises(ValueError, match="target class of --roles needs targets that"):
        _find_attack(config, prices, prices)
    classes = dataset(classes_of(3), np.array([0, 2, 1, 0]), 3)
    config = dataclasses.replace(config, target_class=3)
    with pytest.raises(ValueError, match="target_class=3 .* has classes 0 to 2"):
        _find_attack(config, classes, classes)
