"""Priors, and their gradients, against slow formulas in NumPy."""

import functools
import itertools

import jax
import numpy as np
import pytest
from by_hand import convolve
from slopes import assert_is_formula
from toys import quick_jit

from kljax.attacks import RESTARTS, Candidate
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

WEIGHT, PROGRESS = 0.3, 0.7
IMAGES = np.random.default_rng(0).uniform(-1, 2, (6, 3, 4, 2)).astype(np.float32)
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


def test_the_faintest_contrast_is_held_back():
    """Relative to 1e-4 and more: the root of what is added to the variance."""
    name = "total_variation, relative"
    faint = 1e-4 * IMAGES
    value, _ = belief(name)(faint)
    assert 0.3e-8 < np.var(faint[0]) < 3e-8
    expected = WEIGHT * relative(faint.astype(np.float64))
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_a_cyclic_variation_of_nothing_is_what_is_added_to_every_pixel():
    value, slopes = belief("cyclic_variation")(np.full_like(IMAGES, 0.5))
    np.testing.assert_allclose(value, WEIGHT * 3 * 4 * 2 * 1e-7, rtol=1e-5)
    np.testing.assert_array_equal(slopes, 0)


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
