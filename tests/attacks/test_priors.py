"""Beliefs about images, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import quick_jit

from kljax.attacks import RESTARTS, Candidate, no_prior, total_variation
from kljax.attacks.priors import (
    added,
    box_violation,
    cyclic_variation,
    diagonal_variation,
    group_consistency,
    image_norm,
    order_invariance,
    scheduled,
    squared_variation,
)

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


def test_squared_variation_by_hand():
    # Rows differ by 1 and 3, columns by 2 and 4.
    assert of(squared_variation(0.1), SMALL) == pytest.approx(0.2 * (5 + 10))


def test_diagonal_variation_by_hand():
    expected = 10**0.5 + 20**0.5 + 5 + 1
    assert of(diagonal_variation(0.5), SMALL) == pytest.approx(0.5 * expected)
    # One norm over all images.
    both = np.concatenate([SMALL, SMALL])
    found = of(diagonal_variation(0.5), both)
    assert found == pytest.approx(0.5 * 2**0.5 * expected)


def test_image_norm_by_hand():
    both = np.concatenate([SMALL, 2 * SMALL])
    assert of(image_norm(0.1), both) == pytest.approx(0.15 * 30**0.5)
    assert of(image_norm(0.1, per_pixel=True), both) == pytest.approx(
        0.15 * 30**0.5 / 4
    )


def test_restarts_are_drawn_to_their_mean():
    prior = group_consistency(2.0, after=0.5)
    restarts = np.stack([SMALL, 3 * SMALL])

    @quick_jit
    def values(progress):
        def one(images):
            return prior(None, Candidate(images, None, None), progress)

        return jax.vmap(jax.value_and_grad(one), axis_name=RESTARTS)(restarts)

    assert values(0.49)[0].tolist() == [0, 0]
    found, grads = values(0.5)
    np.testing.assert_allclose(found, 2 * 30**0.5 / 4, rtol=1e-6)
    # Each is drawn to the mean as it is now: towards 2 SMALL, from both sides.
    direction = 2 * SMALL / 30**0.5 / 4
    np.testing.assert_allclose(grads, np.stack([-direction, direction]), rtol=1e-5)


def test_priors_add_up():
    both = added(image_norm(0.1), squared_variation(0.1))
    expected = of(image_norm(0.1), SMALL) + of(squared_variation(0.1), SMALL)
    assert of(both, SMALL) == pytest.approx(float(expected))


MAKERS = {
    "total": lambda weight: total_variation(weight, relative=True),
    "squared": squared_variation,
    "diagonal": diagonal_variation,
    "norm": image_norm,
    "group": lambda weight: group_consistency(weight, after=0.0),
    "cyclic": cyclic_variation,
    "box": box_violation,
    "order": lambda weight: order_invariance(weight, 1, "l2_mean"),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("weight", (-1.0, float("nan")))
def test_an_impossible_weight_is_refused(make, weight):
    with pytest.raises(ValueError, match=f"weight must be >= 0, got {weight}"):
        make(weight)


@pytest.mark.parametrize("name", [name for name in MAKERS if name != "group"])
def test_a_weight_of_zero_is_a_weight(name):
    assert of(MAKERS[name](0.0), SMALL) == 0


def test_a_weight_may_stay_and_may_not_rise_or_fall_to_nothing():
    plain = squared_variation(0.1)
    assert of(scheduled(plain, 1.0), SMALL) == of(plain, SMALL)
    for end in (0.0, 1.001, -0.5, float("nan")):
        with pytest.raises(ValueError, match="end must be above 0 and at most 1"):
            scheduled(plain, end)


def test_one_epoch_holds_the_images_of_itself():
    assert of(order_invariance(1.0, 1, "l2_max"), SMALL) == 0


@pytest.mark.parametrize("make", list(MAKERS.values())[1:4], ids=list(MAKERS)[1:4])
def test_a_black_image_has_a_finite_gradient(make):
    grads = quick_jit(jax.grad(lambda images: of(make(1.0), images)))(0 * SMALL)
    np.testing.assert_array_equal(grads, 0)
