"""resize on pictures whose answer is known."""

import numpy as np
import pytest

from kljax.data import load, resize


def noise(*shape) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("white", [np.uint8(255), np.uint16(65535), np.float64(1)])
def test_white_is_one_and_black_is_zero(white):
    pixels = np.array([[white, 0 * white]])
    result = resize(pixels, (1, 2, 1))
    assert result.dtype == np.float32
    assert result.ravel().tolist() == [1, 0]


def test_pixels_of_the_right_shape_keep_their_values():
    pixels = noise(5, 4, 3)
    np.testing.assert_array_equal(
        resize(pixels, (5, 4, 3)), pixels.astype(np.float32) / np.float32(255)
    )


@pytest.mark.parametrize("pixels", [noise(8, 8), noise(8, 8, 1)])
def test_grey_is_repeated_over_three_channels(pixels):
    result = resize(pixels, (4, 4, 3))
    for channel in range(3):
        np.testing.assert_array_equal(
            result[..., channel], resize(pixels, (4, 4, 1))[..., 0]
        )


def test_colour_becomes_luma():
    red, green, blue = np.eye(3, dtype=np.float32)
    result = resize(np.stack([[red, green, blue]]), (1, 3, 1))
    np.testing.assert_allclose(result.ravel(), [0.299, 0.587, 0.114], rtol=1e-6)


def test_shrinking_averages_and_keeps_orientation():
    pixels = np.zeros((8, 8), np.uint8)
    pixels[:4, 4:] = 255  # top right
    result = resize(pixels, (2, 2, 1))[..., 0]
    # The triangle of half width 4 around 2 puts 3.0 of its 3.5 on the nearer half.
    near, far = 6 / 7, 1 / 7
    expected = [[near * far, near * near], [far * far, near * far]]
    np.testing.assert_allclose(result, expected, rtol=1e-5)
    # A checkerboard without antialiasing would be black or white.
    board = np.indices((16, 16)).sum(axis=0) % 2 * 1.0
    np.testing.assert_allclose(resize(board, (4, 4, 1)), 0.5, atol=0.05)


@pytest.mark.parametrize("turn", [False, True])
def test_longer_ends_are_cut_equally(turn):
    pixels = noise(4, 10)
    middle = pixels[:, 3:7]
    pixels, middle = (pixels.T, middle.T) if turn else (pixels, middle)
    np.testing.assert_array_equal(resize(pixels, (4, 4, 1)), resize(middle, (4, 4, 1)))


@pytest.mark.parametrize(
    "pixels, message",
    [
        (noise(4, 4, 2), "2 channels into 3"),
        (noise(4, 4, 4), "4 channels into 3"),
        (noise(2, 4, 4, 3), r"shape \(2, 4, 4, 3\)"),
        (noise(4, 4).astype(np.int64), "int64"),
        (np.full((4, 4), 255.0), r"spans \[255, 255\]"),
        (np.full((4, 4), np.nan), "must lie in"),
    ],
)
def test_resize_refuses(pixels, message):
    with pytest.raises(ValueError, match=message):
        resize(pixels, (2, 2, 3))


@pytest.mark.parametrize(
    "shape", [(32, 32), (32, 32, 2), (0, 32, 3), (32.0, 32, 3), 32, None, "abc"]
)
def test_a_bad_shape_is_named(shape):
    with pytest.raises(ValueError, match=r"give \(H, W, C\)") as caught:
        load("photos", shape=shape)
    assert repr(shape) in str(caught.value)
