"""What is optimised in place of an image, and where the search begins."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import IMAGE_SHAPE, setting, threat

from kljax.attacks import around, boxed, constant, decoded, normal, searched, upsampled
from kljax.core.inputs import SearchSpace, images_of, several_of
from kljax.core.types import Public
from kljax.data.sentences import sentences_of
from kljax.defences import magnitude_pruning, none

RNG = jax.random.key(6)
VIEW = SimpleNamespace(public=Public({}))  # all that a search in pixels looks at


def ground(image_shape=IMAGE_SHAPE, examples=2):
    return setting(threat(examples=examples), none(), inputs=images_of(image_shape))


def begin(unknown, rng=RNG):
    free, fixed = unknown.start(rng, VIEW)
    return free, unknown.decode(free, fixed)


def test_pixels_are_the_image():
    free, images = begin(searched(ground(), normal(0.5, 0.1)))
    assert images.shape == (2, *IMAGE_SHAPE)
    np.testing.assert_array_equal(free, images)
    outside = searched(ground(), constant(7.0))
    assert np.all(begin(outside)[1] == 7)  # unbounded


def test_boxed_unknowns_stay_where_images_are():
    boxed_pixels = boxed(ground(), searched(ground(), constant(7.0)))
    moved = np.array([-0.5, 0.25, 1.5])
    np.testing.assert_array_equal(boxed_pixels.project(moved), [0, 0.25, 1])
    twice = boxed(ground(), boxed_pixels._replace(project=lambda x: x + 1))
    np.testing.assert_array_equal(twice.project(moved), [0.5, 1, 1])


def test_each_of_several_inputs_is_boxed_by_its_own_space():
    table = dataclasses.replace(
        images_of((2, 2, 1)),
        search=SearchSpace(shape=lambda params: (2, 2, 1), project=lambda x: x + 10),
    )
    inputs = several_of({"image": images_of((2, 2, 1)), "row": table}, primary="image")
    here = setting(threat(examples=1), none(), inputs=inputs)
    unknown = boxed(here, searched(here, constant(7.0)))
    free, _ = begin(unknown)
    projected = unknown.project(free)
    assert np.all(projected["image"] == 1) and np.all(projected["row"] == 17)


TEXT = sentences_of(4, [f"▁{n}" for n in range(5)], padded=True)


@pytest.mark.parametrize(
    ("defence", "places", "real"),
    (
        (none(), (1, 1, 0, 0), (1, 1, 0, 0)),
        (none(), (1, 0, 1, 0), (1, 1, 1, 0)),  # no padding in front of a token
        (none(), (1, np.nan, np.nan, 0), (1, 1, 1, 0)),
        (none(), (0, 0, 0, 0), (1, 1, 1, 1)),  # no sentence is empty
        (magnitude_pruning(0.5), (1, 1, 0, 0), (1, 1, 1, 1)),
    ),
)
def test_a_row_of_zeros_is_padding_only_where_nothing_is_changed(defence, places, real):
    params = {"tokens/embedding": jnp.eye(5)}
    grads = {"positions": jnp.outer(jnp.array(places, float), jnp.ones(5))}
    view = SimpleNamespace(public=Public(params), grads=Public(grads))
    here = setting(threat(examples=2), defence, inputs=TEXT)
    unknown = searched(here, constant(1.0))
    free, fixed = unknown.start(RNG, view)
    fed = unknown.decode(free, fixed)
    np.testing.assert_array_equal(np.any(fed != 0, axis=-1), [real] * 2)
    np.testing.assert_array_equal(unknown.read(fed, fixed) >= 0, [real] * 2)


def test_decoded_sends_latents_through_the_decoder():
    def decoder(latents):
        return jnp.tile(latents.reshape(2, 1, 1, 3), (1, 4, 4, 1))

    free, images = begin(decoded(ground((4, 4, 3)), decoder, (3,), normal(0.0, 1.0)))
    assert free.shape == (2, 3) and images.shape == (2, 4, 4, 3)
    np.testing.assert_array_equal(images[:, 2, 1], free)


def test_upsampled_enlarges_by_linear_interpolation():
    unknown = upsampled(ground((2, 4, 1), examples=1), 2, constant(0.0))
    free, _ = begin(unknown)
    assert free.shape == (1, 1, 2, 1)
    images = unknown.decode(jnp.array([0.0, 4.0]).reshape(free.shape), ())
    # Pixel centres of the coarse image lie at 0.5 and 2.5; outside it is constant.
    np.testing.assert_allclose(images[0, :, :, 0], [[0, 1, 3, 4]] * 2, atol=1e-6)


def test_upsampled_by_one_is_pixels():
    free, images = begin(upsampled(ground(), 1, normal(0.0, 1.0)))
    np.testing.assert_allclose(images, free, atol=1e-6)


@pytest.mark.parametrize("factor", (0, -1, 3))
def test_a_factor_that_does_not_divide_is_refused(factor):
    with pytest.raises(ValueError, match=f"factor={factor} does not divide.*4 x 6"):
        upsampled(ground((4, 6, 1)), factor, constant(0.0))


def test_starts():
    draws = np.asarray(normal(0.5, 0.1)(RNG, (4000,)))
    assert draws.mean() == pytest.approx(0.5, abs=0.01)
    assert draws.std() == pytest.approx(0.1, rel=0.05)
    assert np.any(draws != normal(0.5, 0.1)(jax.random.key(7), (4000,)))
    assert np.all(constant(0.25)(RNG, (2, 3)) == 0.25)


def test_around_starts_at_a_given_image():
    image = np.arange(np.prod(IMAGE_SHAPE), dtype=np.float32).reshape(IMAGE_SHAPE)
    shape = (2, *IMAGE_SHAPE)
    np.testing.assert_array_equal(around(image)(RNG, shape), np.stack([image] * 2))
    np.testing.assert_array_equal(around(0.5)(RNG, shape), np.full(shape, 0.5))
    noisy = np.asarray(around(image, 0.1)(RNG, (500, *IMAGE_SHAPE))) - image
    assert np.std(noisy) == pytest.approx(0.1, rel=0.1)
    with pytest.raises(ValueError, match=r"shape \(3, 3, 1\), expected \(2, 2, 1\)"):
        around(np.zeros((3, 3, 1)))(RNG, shape)
    with pytest.raises(ValueError, match="std must be >= 0, got -1"):
        around(0.5, -1.0)


@pytest.mark.parametrize("given", [(3,), (5, 1), (4, 1, 3), (1, 5, 1), (4, 5, 3)])
def test_around_takes_what_broadcasts_to_one_image(given):
    image = np.arange(np.prod(given), dtype=np.float32).reshape(given)
    found = around(image)(RNG, (2, 4, 5, 3))
    np.testing.assert_array_equal(found, np.broadcast_to(image, (2, 4, 5, 3)))


@pytest.mark.parametrize("given", [(2,), (4, 2, 3), (2, 4, 5, 3), (1, 4, 5, 3)])
def test_around_takes_no_batch_and_no_other_sides(given):
    """A batch would broadcast, too."""
    with pytest.raises(ValueError, match="expected .4, 5, 3."):
        around(np.zeros(given))(RNG, (2, 4, 5, 3))


@pytest.mark.parametrize(
    ("field", "part"),
    (("model", "task"), ("gates", "defence"), ("generator", "attacker")),
)
def test_a_field_of_a_part_says_where_it_is(field, part):
    with pytest.raises(
        AttributeError, match=f"setting.{field} is setting.{part}.{field}"
    ):
        getattr(ground(), field)


def test_a_setting_has_no_other_fields():
    for name in ("images", "_fields_of", "__jax_array__"):
        assert not hasattr(ground(), name)
