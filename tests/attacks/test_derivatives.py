"""Objectives and priors, and their gradients, against slow formulas in NumPy.

Descent goes where the gradient says: one that belongs to another formula than the value
would still find images, only worse ones. So each is held against differences of the
plainest formula, in float64.
"""

import functools
import itertools

import jax
import numpy as np
import pytest
from by_hand import convolve
from toys import quick_jit, setting, threat, toy_model

from kljax.attacks import RESTARTS, Candidate
from kljax.attacks.objectives import (
    OBJECTIVES,
    cosine,
    l1,
    norm,
    squared_l2,
)
from kljax.attacks.presets.federated import layered_l2
from kljax.attacks.presets.gate_regression import balanced_l2
from kljax.attacks.priors import (
    box_violation,
    cyclic_variation,
    diagonal_variation,
    group_consistency,
    image_norm,
    order_invariance,
    random_convolution,
    scheduled,
    squared_variation,
    total_variation,
)
from kljax.attacks.tensors import (
    exponential,
    first,
    largest,
    last,
    linear,
    mask,
    weighted,
)
from kljax.defences import none
from kljax.typing import Public


def differences(formula, at):
    """Takes the gradient of a formula of one array by central differences."""
    slopes, step = np.zeros(at.shape), 1e-5
    for place in np.ndindex(at.shape):
        move = np.zeros(at.shape)
        move[place] = step
        slopes[place] = (formula(at + move) - formula(at - move)) / (2 * step)
    return slopes


def assert_is_formula(value, slopes, formula, at):
    at = np.asarray(at, np.float64)
    assert float(value) == pytest.approx(formula(at), rel=1e-5)
    expected = differences(formula, at)
    largest_slope = np.abs(expected).max()
    assert largest_slope > 0
    np.testing.assert_allclose(slopes, expected, rtol=0, atol=2e-5 * largest_slope)


# --- objectives ------------------------------------------------------------------

# In forward order, which is not that of the names; last what a defence adds.
SHAPES = {
    "first/kernel": (4, 3),
    "first/bias": (3,),
    "fc/kernel": (3, 3),
    "fc/bias": (3,),
    "gate": (3,),
}
SIZE = sum(int(np.prod(shape)) for shape in SHAPES.values())
DEPTHS = {name: depth for depth, name in enumerate(list(SHAPES)[:4])}
GENERATOR = np.random.default_rng(0)
SIMULATED = GENERATOR.standard_normal(SIZE).astype(np.float32)
OBSERVED = GENERATOR.standard_normal(SIZE).astype(np.float32)


def tensors(numbers):
    """Cuts one row of numbers into tensors by name."""
    ends = np.cumsum([int(np.prod(shape)) for shape in SHAPES.values()])
    parts = np.split(numbers, ends[:-1])
    return {
        name: part.reshape(shape)
        for (name, shape), part in zip(SHAPES.items(), parts, strict=True)
    }


def upload(numbers):
    *model, gate = tensors(numbers).items()
    return Public(dict(model), dict([gate]))


def numbers_of(upload):
    named = upload.model | upload.defence
    return np.concatenate([np.ravel(named[name]) for name in SHAPES])


def square(a, b):
    return sum((x - y) ** 2 for x, y in zip(a.flat, b.flat, strict=True))


def length(a, b):
    return square(a, b) ** 0.5


def absolute(a, b):
    return sum(abs(x - y) for x, y in zip(a.flat, b.flat, strict=True))


def dot(a, b):
    return sum(x * y for x, y in zip(a.flat, b.flat, strict=True))


def total(term, weights=lambda o: {}):
    """Sums a term over the tensors; those that no weight is said of weigh 1."""

    def formula(g, o):
        return sum(weights(o).get(name, 1) * term(g[name], o[name]) for name in g)

    return formula


def angle(weights=lambda o: {}):
    inner = total(dot, weights)

    def formula(g, o):
        lengths = total(dot, lambda _: weights(o))
        return 1 - inner(g, o) / (lengths(g, g) * lengths(o, o)) ** 0.5

    return formula


def not_rounding(o):
    """Names the tensors longer than a millionth of the whole."""
    whole = total(dot)(o, o) ** 0.5
    return [name for name in o if dot(o[name], o[name]) ** 0.5 > 1e-6 * whole]


def mean_angle(g, o):
    names = not_rounding(o)
    return np.mean([angle()({n: g[n]}, {n: o[n]}) for n in names])


def balanced(g, o):
    whole = total(dot)(o, o) ** 0.5
    terms = [
        whole / dot(o[name], o[name]) ** 0.5 * square(g[name], o[name])
        for name in not_rounding(o)
    ]
    return sum(terms) / len(SHAPES)


def two_longest(o):
    names = sorted(DEPTHS, key=lambda name: dot(o[name], o[name]))
    return {name: float(name in names[2:]) for name in names}


def always(weights):
    return lambda o: dict(zip(DEPTHS, weights, strict=True))


KEPT = {"first/kernel": True, "first/bias": False, "fc/kernel": True, "fc/bias": False}
MASK = always((1, 0, 1, 0))
LINEAR = always((1, 0.75, 0.5, 0.25))
LAYERS = always((1, 1, np.exp(-1), np.exp(-1)))
GROUND = setting(threat(), none())
PLAIN = {
    "squared_l2": total(square),
    "l1": total(absolute),
    "norm": total(length),
    "l2_norm": lambda g, o: total(square)(g, o) + total(square)(g, o) ** 0.5,
    "tag": lambda g, o: total(square)(g, o) + 0.01 * total(absolute)(g, o),
    "cosine": angle(),
    "cosine_per_tensor": mean_angle,
}
# name -> objective, and its formula of two {name: tensor}
DISTANCES = {name: (OBJECTIVES[name](), PLAIN[name]) for name in PLAIN} | {
    "balanced_l2": (balanced_l2(), balanced),
    "layered_l2": (layered_l2(GROUND), total(square, LAYERS)),
    "first": (
        weighted(squared_l2(), first(DEPTHS, 2)),
        total(square, always((1, 1, 0, 0))),
    ),
    "last": (
        weighted(squared_l2(), last(DEPTHS, 3)),
        total(square, always((0, 1, 1, 1))),
    ),
    "largest": (weighted(squared_l2(), largest(2)), total(square, two_longest)),
    "mask": (weighted(cosine(), mask(KEPT)), angle(MASK)),
    "linear": (weighted(squared_l2(), linear(DEPTHS)), total(square, LINEAR)),
    "linear, of norms": (
        weighted(norm(), linear(DEPTHS), degree=1),
        total(length, LINEAR),
    ),
    "linear, of absolutes": (
        weighted(l1(), linear(DEPTHS), degree=1),
        total(absolute, LINEAR),
    ),
    "linear, of a cosine": (weighted(cosine(), linear(DEPTHS)), angle(LINEAR)),
    "exponential": (
        weighted(squared_l2(), exponential(DEPTHS, 0.5)),
        total(square, always((1, 0.5, 0.25, 0.125))),
    ),
}


@functools.cache
def distance(name):
    """Compiles the value of an objective, and its gradient by the simulated."""
    both = jax.value_and_grad(DISTANCES[name][0])
    return quick_jit(lambda g, o: both(upload(g), upload(o)))


def test_every_objective_is_here():
    assert set(PLAIN) == set(OBJECTIVES)
    shapes, _ = jax.eval_shape(toy_model().init, jax.random.key(0))
    assert {name: leaf.shape for name, leaf in shapes.items()} == {
        name: SHAPES[name] for name in DEPTHS
    }


@pytest.mark.parametrize("faint", (False, True), ids=("all", "one is rounding"))
@pytest.mark.parametrize("name", DISTANCES)
def test_an_objective_is_its_formula_and_so_is_its_gradient(name, faint):
    observed = OBSERVED.copy()
    if faint:
        observed[12:15] *= 1e-8
    value, slopes = distance(name)(SIMULATED, observed)
    truth = tensors(observed.astype(np.float64))
    assert_is_formula(
        value,
        numbers_of(slopes),
        lambda numbers: DISTANCES[name][1](tensors(numbers), truth),
        SIMULATED,
    )


@pytest.mark.parametrize("name", ("l1", "tag", "norm", "l2_norm", "linear, of norms"))
def test_nothing_pulls_where_nothing_is_apart(name):
    """Of |x| and of a norm at 0 there is no derivative: it is taken for 0."""
    value, slopes = distance(name)(OBSERVED, OBSERVED)
    assert value == 0
    np.testing.assert_array_equal(numbers_of(slopes), 0)


# --- priors ----------------------------------------------------------------------

WEIGHT, PROGRESS = 0.3, 0.7
IMAGES = GENERATOR.uniform(-1, 2, (6, 3, 4, 2)).astype(np.float32)
FEATURES = 5


def steps(image, down, right):
    """Lists the differences of two pixels of an image, where both are there."""
    height, width, _ = image.shape
    return np.array(
        [
            image[i + down, j + right] - image[i, j]
            for i, j in np.ndindex(height, width)
            if i + down < height and 0 <= j + right < width
        ]
    )


def variation(images):
    return [
        np.mean(np.abs(steps(x, 1, 0))) + np.mean(np.abs(steps(x, 0, 1)))
        for x in images
    ]


def relative(images):
    pairs = zip(variation(images), images, strict=True)
    return np.mean([own / np.sqrt(np.var(x) + 1e-8) for own, x in pairs])


def squares(images):
    return 2 * np.mean(
        [np.mean(steps(x, 1, 0) ** 2) + np.mean(steps(x, 0, 1) ** 2) for x in images]
    )


def cyclic(images):
    found = 0.0
    for x in images:
        for i, j, c in np.ndindex(x.shape):
            down, right = x[(i + 1) % 3, j, c], x[i, (j + 1) % 4, c]
            found += (x[i, j, c] - down) ** 2 + (x[i, j, c] - right) ** 2 + 1e-7
    return found / len(images)


def diagonal(images):
    return sum(
        np.sqrt(sum(np.sum(steps(x, *way) ** 2) for x in images))
        for way in ((1, 0), (0, 1), (1, 1), (1, -1))
    )


def outside(images):
    beyond = [max(x - 1, 0) + max(-x, 0) for x in images.flat]
    return sum(x**2 for x in beyond) / len(images)


def mean_norm(images):
    return np.mean([np.sqrt(np.sum(x**2)) for x in images])


def order(reduce, features=lambda images: images):
    """Averages over all pairs of three epochs of two images."""

    def formula(images):
        values = features(images)
        epochs = [reduce(values[e : e + 2], axis=0) for e in (0, 2, 4)]
        pairs = itertools.product(epochs, repeat=2)
        return np.mean([np.mean((a - b) ** 2) for a, b in pairs])

    return formula


def convolution(images):
    shape = (3, 3, 2, FEATURES)
    kernel = np.asarray(jax.random.normal(jax.random.key(0), shape), np.float64)
    return convolve(images, kernel / 18**0.5)


# name -> prior, and its formula for a weight of 1
PRIORS = {
    "total_variation": (
        total_variation(WEIGHT, relative=False),
        lambda images: np.mean(variation(images)),
    ),
    "total_variation, relative": (total_variation(WEIGHT, relative=True), relative),
    "squared_variation": (squared_variation(WEIGHT), squares),
    "cyclic_variation": (cyclic_variation(WEIGHT), cyclic),
    "diagonal_variation": (diagonal_variation(WEIGHT), diagonal),
    "image_norm": (image_norm(WEIGHT), mean_norm),
    "image_norm, per pixel": (
        image_norm(WEIGHT, per_pixel=True),
        lambda images: mean_norm(images) / 12,
    ),
    "box_violation": (box_violation(WEIGHT), outside),
    "order, mean": (order_invariance(WEIGHT, 3, "l2_mean"), order(np.mean)),
    "order, largest": (order_invariance(WEIGHT, 3, "l2_max"), order(np.max)),
    "order, of features": (
        order_invariance(WEIGHT, 3, "l2_max", random_convolution(2, features=FEATURES)),
        order(np.max, convolution),
    ),
    "scheduled": (
        scheduled(squared_variation(WEIGHT), 0.1),
        lambda images: 0.1**PROGRESS * squares(images),
    ),
}


@functools.cache
def belief(name):
    """Compiles the value of a prior, and its gradient by the images."""

    def of(images):
        return PRIORS[name][0](None, Candidate(images, None, None), PROGRESS)

    return quick_jit(jax.value_and_grad(of))


@pytest.mark.parametrize("name", PRIORS)
def test_a_prior_is_its_formula_and_so_is_its_gradient(name):
    value, slopes = belief(name)(IMAGES)
    formula = PRIORS[name][1]
    assert_is_formula(value, slopes, lambda images: WEIGHT * formula(images), IMAGES)


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("total_variation", 0.5),
        ("total_variation, relative", 0.5),
        ("diagonal_variation", 0.5),
        ("image_norm", 0.0),
        ("image_norm, per pixel", 0.0),
    ],
)
def test_nothing_pulls_at_a_flat_image(name, level):
    value, slopes = belief(name)(np.full_like(IMAGES, level))
    assert value == 0
    np.testing.assert_array_equal(slopes, 0)


@functools.cache
def drawn_together():
    prior = group_consistency(WEIGHT, after=0.5)

    def of(images):
        return prior(None, Candidate(images, None, None), PROGRESS)

    return quick_jit(jax.vmap(jax.value_and_grad(of), axis_name=RESTARTS))


def test_a_group_is_drawn_to_its_mean_as_it_is_now():
    """The mean moves with the images, and no derivative goes through that.

    Of two restarts that derivative would be 0 anyway.
    """
    restarts = IMAGES.reshape(3, 2, *IMAGES.shape[1:])
    mean = np.mean(restarts.astype(np.float64), axis=0)

    def formula(images):
        return WEIGHT * mean_norm(images - mean) / 12

    for images, value, slopes in zip(
        restarts, *drawn_together()(restarts), strict=True
    ):
        assert_is_formula(value, slopes, formula, images)
    value, slopes = drawn_together()(np.zeros_like(restarts))
    np.testing.assert_array_equal(value, 0)
    np.testing.assert_array_equal(slopes, 0)
