"""Beliefs about images, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import quick_jit

from kljax.attacks import Candidate, no_prior, total_variation

# One channel: rows differ by 1 and 3 (mean 2), columns by 2 and 4 (mean 3).
SMALL = np.array([[0.0, 2.0], [1.0, 5.0]], np.float32)[None, :, :, None]


def of(prior, images):
    return prior(None, Candidate(jnp.asarray(images), None, None), 0.0)


def test_no_prior_prefers_nothing():
    assert of(no_prior, SMALL) == 0


def test_total_variation_by_hand():
    assert of(total_variation(0.5, relative=False), SMALL) == 0.5 * (2 + 3)
    expected = 0.5 * (2 + 3) / SMALL.std()
    found = of(total_variation(0.5, relative=True), SMALL)
    assert found == pytest.approx(expected, rel=1e-5)


def test_it_is_the_mean_over_examples():
    both = np.concatenate([SMALL, 0 * SMALL])
    assert of(total_variation(1.0, relative=False), both) == (5 + 0) / 2


@pytest.mark.parametrize("relative", (True, False))
def test_only_relative_variation_is_blind_to_contrast_and_brightness(relative):
    prior = total_variation(1.0, relative=relative)
    plain, stretched = of(prior, SMALL), of(prior, 0.2 * SMALL + 0.3)
    assert (stretched == pytest.approx(float(plain), rel=1e-4)) == relative


def test_each_example_is_measured_by_its_own_deviation():
    prior = total_variation(1.0, relative=True)
    both = np.concatenate([SMALL, 100 * SMALL])
    assert of(prior, both) == pytest.approx(float(of(prior, SMALL)), rel=1e-4)


@pytest.mark.parametrize("relative", (True, False))
def test_a_flat_image_has_a_finite_gradient(relative):
    prior = total_variation(1.0, relative=relative)
    flat = jnp.full((1, 2, 2, 1), 0.5)
    value, grads = quick_jit(jax.value_and_grad(lambda images: of(prior, images)))(flat)
    assert value == 0 and np.all(np.isfinite(grads))


@pytest.mark.parametrize("weight", (-1.0, float("nan")))
def test_an_impossible_weight_is_refused(weight):
    with pytest.raises(ValueError, match=f"weight must be >= 0, got {weight}"):
        total_variation(weight, relative=True)
