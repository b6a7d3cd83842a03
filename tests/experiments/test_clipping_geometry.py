"""The geometry of clipping: the example of two points, and what asymmetry measures."""

import clipping_geometry as geometry
import numpy as np
import pytest


def test_between_the_bounds_every_point_is_stationary_without_noise_alone():
    for x in (-1.0, -0.4, 0.3, 1.0):
        assert geometry.mean_move(x, 0.0) == 0
        assert geometry.end_of_descent(x, 0.0) == x
        if x:
            assert np.sign(geometry.mean_move(x, 1.0)) == np.sign(x)
    assert geometry.end_of_descent(3.0, 0.0) == pytest.approx(1.0, abs=1e-6)
    assert geometry.end_of_descent(3.0, 1.0) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("std", (0.0, 0.5, 3.0))
def test_the_expected_move_is_that_of_many_draws(std):
    noise = std * np.random.default_rng(0).standard_normal(200_000)
    for x in (-2.0, 0.7, 5.0):
        draws = [np.clip((x - a) / 2 + noise, -1, 1) for a in (-3, 3)]
        assert geometry.mean_move(x, std) == pytest.approx(np.mean(draws), abs=5e-3)


def test_a_symmetric_sample_is_told_from_one_that_is_not():
    generator = np.random.default_rng(1)
    symmetric = generator.standard_normal((200, 2)) + 5
    found, chance = geometry.asymmetry(symmetric, signs=40)
    assert max(abs(found), abs(chance)) < 0.01
    skewed = generator.exponential(size=(200, 2))
    found, chance = geometry.asymmetry(skewed, signs=40)
    assert found > 0.02 and abs(chance) < 0.01


def test_the_direction_of_a_mean_that_is_hardly_clipped_is_its_own():
    grads = np.float32(np.random.default_rng(2).standard_normal((8, 30)))
    (wide,) = geometry.clipped_means(grads, 1e6, 0.0, draws=1)
    np.testing.assert_allclose(wide, grads.mean(axis=0), rtol=1e-5, atol=1e-6)
    (tight,) = geometry.clipped_means(grads, 0.1, 0.0, draws=1)
    unit = grads / np.linalg.norm(grads, axis=1, keepdims=True)
    np.testing.assert_allclose(tight, 0.1 * unit.mean(axis=0), rtol=1e-4, atol=1e-6)
