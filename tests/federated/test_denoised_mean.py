"""The mean without noise: against a slow form, where it helps and where it harms."""

import numpy as np
import pytest
from slow_rules import slow_without_noise

from kljax.federated.aggregation import denoised_mean, make_aggregator
from kljax.federated.aggregation.denoising import without_noise

STD = 0.1


def low_rank(generator, columns=20, rows=120):
    """Draws a matrix of two strong directions, as one vector."""
    left, right = (generator.normal(size=(n, 2)) for n in (rows, columns))
    return (left @ right.T).ravel()


@pytest.mark.parametrize("size", [1, 3, 100, 2399, 2400])
@pytest.mark.parametrize("aspect", [1.0, 6.0])
def test_it_is_its_slow_form(size, aspect):
    generator = np.random.default_rng(size)
    vector = generator.normal(size=size) * np.linspace(0.02, 0.3, size)
    columns = max(1, int(np.sqrt(size / aspect)))
    if -(-size // columns) > 1:  # one row has no covariance
        found = without_noise(vector.astype(np.float32), STD, aspect)
        wanted = slow_without_noise(vector, STD, aspect)
        np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_a_square_matrix_keeps_its_direction_of_no_variance(seed):
    """The lower bound is 0 there, and rounding does not say on which side it is."""
    vector = np.random.default_rng(seed).normal(size=100)
    found = without_noise(vector.astype(np.float32), 10 * STD, 1.0)
    wanted = slow_without_noise(vector, 10 * STD, 1.0)
    np.testing.assert_allclose(found, wanted, atol=2e-4)
    # Along it all rows are their mean: nothing else is left of them.
    rows = wanted.reshape(10, 10)
    assert np.abs(rows).max() > 5e-3 and np.allclose(rows, rows[:1], atol=1e-9)


def test_a_few_directions_are_found_beneath_the_noise():
    generator = np.random.default_rng(0)
    true = low_rank(generator)
    noisy = true + STD * generator.normal(size=true.size)
    before = np.linalg.norm(noisy - true)
    assert np.linalg.norm(without_noise(noisy, STD) - true) < 0.5 * before


def test_noise_alone_is_taken_out_and_another_level_of_it_is_not():
    """Eigenvalues are within the bounds but for chance, of the right noise alone."""
    noise = STD * np.random.default_rng(1).normal(size=2400)
    left = [np.linalg.norm(without_noise(noise, std)) for std in (STD, STD / 4)]
    assert left[0] < 0.4 * np.linalg.norm(noise)
    np.testing.assert_allclose(left[1], np.linalg.norm(noise), rtol=1e-4)


def test_what_has_the_size_of_noise_is_lost_with_it():
    """It does not know noise from a change that is spread over all directions."""
    generator = np.random.default_rng(2)
    true, noise = STD * generator.normal(size=(2, 2400)) / np.sqrt(2)
    assert np.linalg.norm(without_noise(true + noise, STD) - true) > 0.9 * np.sqrt(
        np.sum(noise**2)
    )


@pytest.mark.parametrize("text", ["denoised-mean=0", "denoised-mean=1,0.5"])
def test_numbers_out_of_range_are_refused(text):
    with pytest.raises(ValueError, match="denoised-mean needs"):
        make_aggregator(text)


def test_its_defaults_are_the_codes():
    assert denoised_mean.__defaults__ == (6.0,)
