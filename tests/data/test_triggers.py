"""Triggers: what they paint, by hand, and what they are refused for."""

import jax.numpy as jnp
import numpy as np
import pytest

from kljax.data.triggers import (
    blended,
    distributed,
    lay_over,
    make_trigger,
    parts_of,
    patch,
)

GREY = np.full((2, 8, 9, 3), 0.25, np.float32)


def painted(trigger, images=GREY):
    return np.asarray(trigger(images))


def test_an_overlay_is_a_mixture_pixel_by_pixel():
    draw = np.random.default_rng(0)
    image = draw.random((2, 3, 4), np.float32)
    mask, pattern = draw.random((2, 3, 1), np.float32), draw.random(image.shape)
    found = np.asarray(lay_over(jnp.asarray(image), (mask, pattern)))
    for row in range(2):
        for column in range(3):
            m = mask[row, column, 0]
            expected = (1 - m) * image[row, column] + m * pattern[row, column]
            np.testing.assert_allclose(found[row, column], expected, rtol=1e-6)
    assert found.dtype == np.float32


def test_blending_mixes_all_images_with_one_noise():
    images = GREY.copy()
    images[1] = 0.75
    noise = (painted(blended(0.2), images) - 0.8 * images) / 0.2
    np.testing.assert_allclose(noise[0], noise[1], atol=1e-6)
    assert 0 <= noise.min() < 0.05 and 0.95 < noise.max() <= 1
    assert np.std(noise[0], axis=-1).max() > 0.1  # colours are drawn apart
    same = (painted(blended(1.0), images))[0]
    np.testing.assert_allclose(same, noise[0], atol=1e-6)
    assert np.abs(painted(blended(1.0, 7)) - same).max() > 0.5


def test_bars_are_parts_that_make_up_the_whole():
    trigger = distributed(4, 2, 1)
    whole = painted(trigger)[0, :, :, 0] == 1
    drawn = ["##.##", ".....", "##.##"]
    expected = np.zeros((8, 9), bool)
    for row, line in enumerate(drawn):
        for column, pixel in enumerate(line):
            expected[row, column] = pixel == "#"
    np.testing.assert_array_equal(whole, expected)
    parts = [painted(part)[0, :, :, 0] == 1 for part in parts_of(trigger)]
    assert [part.sum() for part in parts] == [2, 2, 2, 2]
    np.testing.assert_array_equal(np.sum(parts, axis=0), expected)
    # A last row of one bar.
    assert (painted(distributed(3, 1, 0))[0, :, :, 0] == 1).sum() == 3


def test_a_trigger_without_parts_has_none():
    for trigger in (patch(2), blended(), lambda images: images):
        assert parts_of(trigger) == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("patch=8", "a patch of 8 pixels covers images of 8 x 9"),
        ("distributed=10", "10 bars of 2 pixels .* take 9 x 5 .* images are 8 x 9"),
        ("distributed=4,4,1", "take 3 x 9 pixels, and images are 8 x 9"),
        ("distributed=1", "distributed has 2 or more parts, got 1"),
        ("distributed=4,0", "a length of whole pixels >= 1, got 0"),
        ("distributed=4,1,-1", "a gap of whole pixels >= 0, got -1"),
        ("blended=0", r"blended has an alpha in \(0, 1\], got 0"),
        ("blended=1.5", r"an alpha in \(0, 1\], got 1.5"),
        ("blended=0.2,-1", "a seed that is whole, >= 0, got -1"),
        ("test_triggers:with_a_loud_part", "makes values from 2.5 to 2.5"),
    ],
)
def test_what_does_not_fit_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        make_trigger(text, GREY.shape[1:])


class Quiet:
    parts = (lambda images: images + 2,)

    def __call__(self, images):
        return images


def with_a_loud_part():
    return Quiet()
